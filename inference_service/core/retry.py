"""Retries of a call during an outage."""

from collections.abc import Callable

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

_MAX_INTERVAL_S = 5.0


def retrying(is_outage: Callable[[BaseException], bool], *, timeout_s: float) -> Retrying:
    """Makes a caller that repeats a call while an outage lasts, at growing random intervals.

    Args:
        is_outage: Whether an exception is an outage; every other exception is raised at once.
        timeout_s: After this time the outage's exception is raised.

    Returns:
        Call it with the function and its arguments. It may be shared between threads.
    """
    return Retrying(
        retry=retry_if_exception(is_outage),
        wait=wait_random_exponential(multiplier=0.2, max=_MAX_INTERVAL_S),
        stop=stop_after_delay(timeout_s),
        reraise=True,
    )
