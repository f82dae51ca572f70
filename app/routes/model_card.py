"""`/merges/{id}/model-card`: the model card in Markdown."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

from app.routes.dependencies import BackendDep
from app.routes.openapi import problems
from app.routes.pools import SCORING
from app.services import model_card

router = APIRouter(prefix="/merges/{merge_id}", tags=["artifacts"])
_TYPE = "text/markdown"


@router.get(
    "/model-card",
    response_model=None,
    response_class=Response,
    responses={
        200: {"description": "Markdown.", "content": {_TYPE: {"schema": {"type": "string"}}}},
        **problems(404),
    },
)
@SCORING
def get_model_card(backend: BackendDep, merge_id: str) -> Response:
    """Return a model card: recipe, inputs with digests, error rates so far."""
    return Response(model_card.get(backend, merge_id), media_type=_TYPE)
