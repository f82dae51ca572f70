"""Reads request bodies, JSON or YAML, up to a size limit."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import Depends, Request

from app.contract.errors import (
    BodyTooLargeError,
    RequestTimeoutError,
    UnsupportedMediaTypeError,
)
from app.routes.dependencies import BackendDep
from app.services.documents import parse_document

_Form = Literal["json", "yaml"]
_FORMS: dict[str, _Form] = {
    "application/json": "json",
    "application/yaml": "yaml",
    "application/x-yaml": "yaml",
    "text/yaml": "yaml",
}


def _form_of(request: Request) -> _Form:
    given = request.headers.get("content-type", "")
    form = _FORMS.get(given.partition(";")[0].strip().lower())
    encoding = request.headers.get("content-encoding", "identity").lower()
    if form is None:
        # A missing type is refused too: pages of other origins can send such bodies.
        raise UnsupportedMediaTypeError(
            f"The body's type is {given or 'not given'}; send Content-Type: application/json or "
            "application/yaml."
        )
    if encoding != "identity":
        raise UnsupportedMediaTypeError(
            f"Content-Encoding {encoding} is not supported; send the body uncompressed."
        )
    return form


async def _read(request: Request, backend: BackendDep) -> tuple[_Form, bytes]:
    form, limit = _form_of(request), backend.settings.max_body_bytes
    announced = request.headers.get("content-length", "")
    content = bytearray()
    seconds = backend.settings.request_seconds
    if not (announced.isdecimal() and int(announced[:20]) > limit):
        try:
            async with asyncio.timeout(seconds):
                async for chunk in request.stream():
                    content += chunk
                    if len(content) > limit:
                        break
                else:
                    return form, bytes(content)
        except TimeoutError:
            raise RequestTimeoutError(
                f"The body was not sent within {seconds:g} s (AFLUENTE_REQUEST_SECONDS)."
            ) from None
    raise BodyTooLargeError(
        f"The body has more than {limit:,} bytes (AFLUENTE_MAX_BODY_BYTES); refer to files by URI, "
        "do not include them."
    )


def _parse(body: Annotated[tuple[_Form, bytes], Depends(_read)]) -> Any:
    form, content = body
    return parse_document(content, form)


Document = Annotated[Any, Depends(_parse)]
