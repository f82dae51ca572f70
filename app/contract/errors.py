"""All errors that users see: each has a code, a status and a message that says what to do.

AfluenteError
├── RequestRefusedError            the request itself
│   ├── InvalidRequestError        422 invalid_request (several problems at once)
│   ├── MalformedBodyError         400 malformed_body
│   ├── BodyTooLargeError          413 body_too_large
│   ├── UnsupportedMediaTypeError  415 unsupported_media_type
│   ├── UnauthorizedError          401 unauthorized
│   ├── ForbiddenError             403 forbidden
│   ├── NotFoundError              404 not_found
│   ├── RequestTimeoutError        408 request_timeout
│   ├── ConflictError              409 conflict
│   ├── IdempotencyConflictError   409 idempotency_in_progress
│   ├── IdempotencyMismatchError   422 idempotency_mismatch
│   ├── GoneError                  410 gone
│   ├── RangeNotSatisfiableError   416 range_not_satisfiable
│   └── NotReadyError              503 not_ready
├── SourceError                    a checkpoint or dataset cannot be used
│   ├── SourceNotFoundError        422 source_not_found
│   ├── SourceNotAllowedError      422 source_not_allowed
│   ├── SourceUnreachableError     503 source_unreachable (retryable)
│   ├── SourceTooLargeError        422 source_too_large
│   ├── SourceChangedError         422 source_changed
│   ├── InvalidCheckpointError     422 invalid_checkpoint
│   ├── IncompatibleCheckpointError 422 incompatible_checkpoint
│   ├── NonFiniteInputError        422 non_finite_input
│   └── InvalidManifestError       422 invalid_manifest
└── JobError                       an accepted merge or evaluation failed
    ├── OutputOverflowError        output_overflow
    ├── UndefinedMergeError        undefined_merge
    ├── OutOfMemoryError           out_of_memory (retryable)
    ├── StorageError               503 storage_unavailable (retryable)
    ├── WorkerLostError            worker_lost (retryable)
    ├── ConversionFailedError      conversion_failed
    ├── EvaluationFailedError      evaluation_failed
    └── InternalError              internal_error (retryable)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

_LONGEST_MESSAGE = 4_000
_LONGEST_PROBLEM = 1_000
_LONGEST_PARAM = 300
# A body of 1 MB may have 100,000 faults; nobody reads more than the first ones.
MOST_PROBLEMS = 100


def sanitize(text: str, longest: int = _LONGEST_MESSAGE) -> str:
    """Return the text as valid Unicode without NUL, cut to `longest` characters.

    Messages quote untrusted input, and end up in JSON, headers, logs and the database.
    """
    if len(text) > longest:
        text = f"{text[: longest - 1]}…"
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `param` is the field's path (`checkpoints[1].uri`) or None."""

    message: str
    param: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", sanitize(self.message, _LONGEST_PROBLEM))
        if self.param is not None:
            object.__setattr__(self, "param", sanitize(self.param, _LONGEST_PARAM))

    def as_dict(self) -> dict[str, Any]:
        """Return the problem as the API shows it."""
        return {"param": self.param, "message": self.message}


class AfluenteError(Exception):
    """A failure with a published code; `message` says what, where and what to do."""

    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, param: str | None = None, problems: Sequence[Problem] = ()
    ) -> None:
        message = sanitize(message)
        super().__init__(message)
        self.message = message
        self.param = None if param is None else sanitize(param, _LONGEST_PARAM)
        self.problems = tuple(problems[:MOST_PROBLEMS])

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep the keyword arguments when pickled: errors cross process boundaries."""
        return _rebuild, (type(self), self.message, self.param, self.problems)

    def as_record(self) -> dict[str, Any]:
        """Return code, message, param and retryable, as merges and evaluations store them."""
        return {
            "code": self.code,
            "message": self.message,
            "param": self.param,
            "retryable": self.retryable,
        }

    def as_problems(self) -> tuple[Problem, ...]:
        """Return the problems, or the error itself as the only one."""
        return self.problems or (Problem(self.message, self.param),)


def _rebuild(
    kind: type[AfluenteError], message: str, param: str | None, problems: tuple[Problem, ...]
) -> AfluenteError:
    return kind(message, param=param, problems=problems)


class RequestRefusedError(AfluenteError):
    """The request cannot be accepted."""

    status = 400
    code = "refused"
    title = "Request refused"


class InvalidRequestError(RequestRefusedError):
    """One or more fields are wrong; `problems` lists them all."""

    status = 422
    code = "invalid_request"
    title = "The request is not valid"

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> InvalidRequestError:
        """Return the error for a non-empty list of problems."""
        first = problems[0]
        where = f"{first.param}: " if first.param else ""
        more = f" (and {len(problems) - 1} more, see errors)" if len(problems) > 1 else ""
        return cls(f"{where}{first.message}{more}", param=first.param, problems=problems)


class MalformedBodyError(RequestRefusedError):
    """The body is not JSON (or YAML) of the expected form."""

    status = 400
    code = "malformed_body"
    title = "The body cannot be read"


class BodyTooLargeError(RequestRefusedError):
    """The body is larger than the service accepts."""

    status = 413
    code = "body_too_large"
    title = "The body is too large"


class UnsupportedMediaTypeError(RequestRefusedError):
    """The endpoint does not accept this Content-Type."""

    status = 415
    code = "unsupported_media_type"
    title = "The media type is not supported"


class UnauthorizedError(RequestRefusedError):
    """The API key is missing or unknown."""

    status = 401
    code = "unauthorized"
    title = "An API key is needed"


class ForbiddenError(RequestRefusedError):
    """The API key lacks the scope."""

    status = 403
    code = "forbidden"
    title = "Not allowed with this API key"


class NotFoundError(RequestRefusedError):
    """The resource does not exist."""

    status = 404
    code = "not_found"
    title = "Not found"


class RequestTimeoutError(RequestRefusedError):
    """The body did not arrive in time."""

    status = 408
    code = "request_timeout"
    title = "The request did not arrive in time"
    retryable = True


class ConflictError(RequestRefusedError):
    """The resource's state does not allow the call."""

    status = 409
    code = "conflict"
    title = "The resource's state does not allow this"


class IdempotencyConflictError(RequestRefusedError):
    """The first request with this Idempotency-Key is still open."""

    status = 409
    code = "idempotency_in_progress"
    title = "The first request with this key is still open"
    retryable = True


class IdempotencyMismatchError(RequestRefusedError):
    """The Idempotency-Key was used for another request."""

    status = 422
    code = "idempotency_mismatch"
    title = "The key was used for another request"


class GoneError(RequestRefusedError):
    """The resource that was created with this Idempotency-Key has been deleted."""

    status = 410
    code = "gone"
    title = "Deleted"


class RangeNotSatisfiableError(RequestRefusedError):
    """The Range header asks for bytes that the file does not have."""

    status = 416
    code = "range_not_satisfiable"
    title = "The range cannot be served"


class NotReadyError(RequestRefusedError):
    """The service lacks something it needs (database, broker)."""

    status = 503
    code = "not_ready"
    title = "The service is not ready"
    retryable = True


class SourceError(AfluenteError):
    """A checkpoint or a dataset cannot be used."""

    status = 422
    code = "source_error"
    title = "A source cannot be used"


class SourceNotFoundError(SourceError):
    """Nothing is at the URI."""

    code = "source_not_found"
    title = "A source was not found"


class SourceNotAllowedError(SourceError):
    """The operator's settings do not allow the URI."""

    code = "source_not_allowed"
    title = "A source is not allowed"


class SourceUnreachableError(SourceError):
    """The source's server did not respond, or responded with a temporary error."""

    status = 503
    code = "source_unreachable"
    title = "A source could not be reached"
    retryable = True


class SourceTooLargeError(SourceError):
    """The source is larger than the operator's quota."""

    code = "source_too_large"
    title = "A source is too large"


class SourceChangedError(SourceError):
    """The source's bytes changed during the merge."""

    code = "source_changed"
    title = "A source changed while it was used"


class InvalidCheckpointError(SourceError):
    """A file of the checkpoint is missing, damaged or not safetensors."""

    code = "invalid_checkpoint"
    title = "A checkpoint is not valid"


class IncompatibleCheckpointError(SourceError):
    """The checkpoints differ in architecture, tensor names, shapes or dtypes."""

    code = "incompatible_checkpoint"
    title = "The checkpoints do not fit each other"


class NonFiniteInputError(SourceError):
    """A tensor holds NaN or infinity."""

    code = "non_finite_input"
    title = "A checkpoint holds NaN or infinity"


class InvalidManifestError(SourceError):
    """A dataset's manifest cannot be read."""

    code = "invalid_manifest"
    title = "A manifest is not valid"


class JobError(AfluenteError):
    """An accepted merge or evaluation failed."""

    code = "failed"
    title = "The job failed"


class OutputOverflowError(JobError):
    """A merged value does not fit the output dtype."""

    code = "output_overflow"
    title = "The merge overflows the output dtype"


class UndefinedMergeError(JobError):
    """The method is undefined for a tensor (antipodal experts, for example)."""

    code = "undefined_merge"
    title = "The method is undefined for these checkpoints"


class OutOfMemoryError(JobError):
    """Host or GPU memory ran out."""

    code = "out_of_memory"
    title = "Out of memory"
    retryable = True


class StorageError(JobError):
    """The disk is full or the artifact store cannot be reached."""

    status = 503
    code = "storage_unavailable"
    title = "The artifact store cannot be written"
    retryable = True


class WorkerLostError(JobError):
    """The worker died in every allowed attempt."""

    code = "worker_lost"
    title = "The worker died"
    retryable = True


class ConversionFailedError(JobError):
    """The artifact could not be written in the format of another runtime."""

    code = "conversion_failed"
    title = "The conversion failed"


class EvaluationFailedError(JobError):
    """The evaluation could not be completed."""

    code = "evaluation_failed"
    title = "The evaluation failed"


class InternalError(JobError):
    """The service itself has a fault."""

    code = "internal_error"
    title = "Internal error"
    retryable = True
