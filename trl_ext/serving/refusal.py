"""A request that is answered with an error."""

from fastapi.responses import Response

from trl_ext.serving.gate import error_reply


class Refusal(Exception):
    """`retry_after`: the seconds after which a client may ask again; official clients do so by themselves."""

    def __init__(self, status: int, message: str, code: str | None = None, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.retry_after = status, message, code, retry_after

    def reply(self) -> Response:
        headers = {} if self.retry_after is None else {"retry_after": str(self.retry_after)}
        return error_reply(self.status, self.message, self.code, **headers)
