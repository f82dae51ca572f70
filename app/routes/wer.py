"""`/merges/{id}/wer`: error rates as JSON, CSV or HTML; the scored utterances; their audio."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import (
    HTMLResponse,
    JSONResponse,
    Response,
    StreamingResponse,
)

from app.contract.evaluation import NormalizerName
from app.reports.exports import ExportFormat, Side
from app.routes.dependencies import BackendDep
from app.routes.negotiation import preferred
from app.routes.openapi import problems
from app.routes.pools import FILES, SCORING
from app.routes.sending import download_responses, send_download
from app.services import wer
from app.services.selection import MERGE
from app.services.wer import Selection
from app.services.wer_audio import utterance_audio
from app.services.wer_page import report_page
from app.sources.audio_files import PLAYABLE

router = APIRouter(prefix="/merges/{merge_id}/wer", tags=["error rates"])
_Normalizer = Annotated[
    NormalizerName | None,
    Query(description="Score with this normaliser instead of each dataset's own."),
]
_Evaluation = Annotated[str | None, Query(description="Only results of this evaluation.")]
_FORMS = {"application/json": "json", "text/html": "html", "text/csv": "csv"}
_EXAMPLE: dict[str, Any] = {
    "merge_id": "mrg_01KB0Y8W5RZ9J2M7N4C6T3VHQX",
    "status": "succeeded",
    "datasets": [
        {
            "name": "parliament-test",
            "group": "in_domain",
            "language": "pt",
            "detected_languages": {},
            "metric": "wer",
            "wer": 0.0927,
            "cer": 0.031,
            "substitutions": 61,
            "deletions": 14,
            "insertions": 9,
            "hits": 831,
            "reference_words": 906,
            "utterances": 60,
            "ci95": {
                "low": 0.0741,
                "high": 0.1128,
                "method": "bootstrap",
                "replicates": 1000,
                "unit": "speaker",
                "units": 24,
                "seed": 0,
            },
            "hallucinations": {
                "silent_utterances": 2,
                "words_on_silence": 0,
                "loops": 1,
                "loop_rate": 0.0167,
            },
            "compared_with": {
                "base": {
                    "wer": 0.1562,
                    "delta": -0.0635,
                    "delta_ci95": {"low": -0.0862, "high": -0.0411},
                    "utterances": 60,
                    "segments": 71,
                    "mapsswe_p": 0.0004,
                    "probability_of_improvement": 0.999,
                }
            },
            "not_compared_with": {"telephone": "it was not evaluated on this dataset"},
        }
    ],
    "averages": {"in_domain": {"macro": 0.0927, "micro": 0.0927, "datasets": 1, "rtfx": 9.3}},
    "systems": {"base": {"datasets": ["..."], "averages": {"...": "..."}}},
    "evaluation": {
        "id": "evl_01KB0Y8W5RZ9J2M7N4C6T3VHQX",
        "status": "succeeded",
        "datasets": ["parliament-test"],
        "sets": [
            {
                "name": "parliament-test",
                "evaluation_id": "evl_01KB0Y8W5RZ9J2M7N4C6T3VHQX",
                "status": "succeeded",
            }
        ],
        "gate": {
            "passed": True,
            "max_wer": {"parliament-test": 0.1},
            "max_regression": {"*": 0.01},
            "max_loops": {},
            "max_words_on_silence": {},
            "against": "base",
            "failures": [],
        },
    },
}


@router.get(
    "",
    response_model=None,
    responses={
        200: {
            "description": "The results so far; `status` tells whether more will follow.",
            "content": {
                "application/json": {"schema": {"type": "object"}, "example": _EXAMPLE},
                "text/csv": {"schema": {"type": "string"}},
                "text/html": {"schema": {"type": "string"}},
                "application/yaml": {"schema": {"type": "string"}},
            },
        },
        **problems(404),
    },
)
@SCORING
def get_wer(
    request: Request,
    backend: BackendDep,
    merge_id: str,
    normalizer: _Normalizer = None,
    evaluation: _Evaluation = None,
    format: Annotated[
        Literal["json", "csv", "html", "eval_results"] | None,
        Query(
            description="Default: by the Accept header, else JSON. eval_results is a model's "
            "`.eval_results/*.yaml` on the Hugging Face hub, of the datasets that are there."
        ),
    ] = None,
) -> Response:
    """Return the error rates of the merge and of the systems compared with it."""
    form = format or preferred(request.headers.get("accept", ""), _FORMS)
    headers = {"Vary": "Accept"}
    if form == "html":
        page, policy = report_page(
            backend, merge_id, normalizer=normalizer, evaluation_id=evaluation
        )
        return HTMLResponse(page, headers=headers | page_headers(policy))
    if form == "eval_results":
        text = wer.eval_results(backend, merge_id, normalizer=normalizer, evaluation_id=evaluation)
        return Response(text, headers=headers, media_type="application/yaml")
    document = wer.report(backend, merge_id, normalizer=normalizer, evaluation_id=evaluation)
    if form == "csv":
        headers["Content-Disposition"] = f'attachment; filename="{merge_id}-wer.csv"'
        return Response(wer.report_csv(document), headers=headers, media_type="text/csv")
    return JSONResponse(document, headers=headers)


def page_headers(policy: str) -> dict[str, str]:
    """Return the headers of an HTML page with this Content-Security-Policy."""
    return {
        "Content-Security-Policy": f"{policy}; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }


async def _selection(
    system: Annotated[
        str, Query(max_length=120, description='"merge", "base", an expert\'s name or a merge.')
    ] = MERGE,
    dataset: Annotated[str | None, Query(max_length=120, description="One dataset.")] = None,
    evaluation: _Evaluation = None,
    normalizer: _Normalizer = None,
) -> Selection:
    return Selection(system, dataset, evaluation, normalizer)


@router.get(
    "/utterances",
    response_model=None,
    responses={
        200: {
            "description": "A page as JSON, or all utterances as JSON lines or in the format of "
            "another tool: NIST's trn and STM (sclite), SegLST (meeteval), NeMo's manifest with "
            "`pred_text`.",
            "content": {
                # A page, or the segments of SegLST.
                "application/json": {"schema": {"type": ["object", "array"]}},
                "application/jsonl": {"schema": {"type": "string"}},
                "text/plain": {"schema": {"type": "string"}},
            },
        },
        **problems(404),
    },
)
@SCORING
def get_utterances(
    backend: BackendDep,
    merge_id: str,
    selection: Annotated[Selection, Depends(_selection)],
    format: Annotated[Literal["json", ExportFormat], Query()] = "json",
    side: Annotated[
        Side,
        Query(description="The text for trn, stm and seglst, as it was scored."),
    ] = "hypothesis",
    page_size: Annotated[int, Query(ge=1, le=1000)] = 100,
    page_token: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    """Return reference, hypothesis and alignment of each utterance."""
    if format == "json":
        page = wer.utterance_page(
            backend, merge_id, selection, page_size=page_size, page_token=page_token
        )
        return JSONResponse(page)
    found, _ = wer.utterances(backend, merge_id, selection)
    media_type, text = wer.export(found, format, side)
    return Response(text, media_type=media_type)


@router.get(
    "/audio",
    response_model=None,
    response_class=StreamingResponse,
    responses=download_responses(*PLAYABLE.values()),
)
@FILES
def get_audio(
    request: Request,
    backend: BackendDep,
    merge_id: str,
    evaluation: Annotated[
        str,
        Query(
            description="The evaluation that decoded the utterance.",
            examples=["evl_01KB0Y8W5RZ9J2M7N4C6T3VHQX"],
        ),
    ],
    dataset: Annotated[
        str, Query(max_length=120, description="Its dataset.", examples=["parliament-test"])
    ],
    index: Annotated[
        int, Query(ge=0, description="The utterance's `index` in `/wer/utterances`.", examples=[0])
    ],
) -> Response:
    """Return the whole audio file of an utterance that the merge has decoded.

    The utterance begins at its `offset_seconds` and lasts `audio_seconds`. Only what browsers play
    is sent (wav, flac, ogg, mp3), and only from folders that may be read: 403 outside them, 404 for
    what is no longer there.
    """
    audio = utterance_audio(backend, merge_id, evaluation, dataset, index)
    headers = {
        "Content-Disposition": "inline",
        "X-Content-Type-Options": "nosniff",
        # Other origins' pages could embed it.
        "Cross-Origin-Resource-Policy": "same-origin",
    }
    return send_download(request, audio, headers, several=False)
