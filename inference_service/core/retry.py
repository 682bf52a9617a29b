"""Trying again what an outage has stopped."""

from collections.abc import Callable

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

_LONGEST_WAIT_S = 5.0


def retrying(is_transient: Callable[[BaseException], bool], *, for_s: float) -> Retrying:
    """Calls a function again and again while it raises what may pass, at growing random intervals.

    Args:
        is_transient: Whether an exception is an outage.
        for_s: For how long; after that the exception is raised.

    Returns:
        To be called with the function and its arguments; safe to share between threads.
    """
    return Retrying(
        retry=retry_if_exception(is_transient),
        wait=wait_random_exponential(multiplier=0.2, max=_LONGEST_WAIT_S),
        stop=stop_after_delay(for_s),
        reraise=True,
    )
