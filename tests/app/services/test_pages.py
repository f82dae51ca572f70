from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contract.errors import InvalidRequestError
from app.services.pages import decode_offset_token, decode_time_token, encode_token


@given(st.floats(allow_nan=False, allow_infinity=False), st.text("mrg_0123456789ABC", max_size=30))
def test_a_token_gives_its_position_back(seconds: float, identifier: str):
    assert decode_time_token(encode_token(seconds, identifier)) == (seconds, identifier)


@given(st.integers(0, 2**31 - 1))
def test_an_offset_token_gives_its_offset_back(offset: int):
    assert decode_offset_token(encode_token(offset)) == offset


@given(st.text(max_size=40))
def test_any_other_text_is_refused(token: str):
    for decode in (decode_time_token, decode_offset_token):
        with pytest.raises(InvalidRequestError) as caught:
            decode(token)
        assert caught.value.param == "page_token"


@pytest.mark.parametrize("offset", [-1, 2**31, 1.5, "x"])
def test_an_offset_out_of_bounds_is_refused(offset: object):
    with pytest.raises(InvalidRequestError):
        decode_offset_token(encode_token(offset))  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", ["9" * 330, "-" + "9" * 330, "9" * 5000, "1e999", "NaN"])
def test_a_time_out_of_bounds_is_refused(seconds: str):
    token = base64.urlsafe_b64encode(f'[{seconds},"x"]'.encode()).decode()
    with pytest.raises(InvalidRequestError):
        decode_time_token(token)
