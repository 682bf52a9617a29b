import pytest

from inference_service.contract.task_message import SegmentRequest, parse_request
from inference_service.core.errors import BadRequest
from inference_service.core.settings import Settings
from inference_service.jobs.request_scope import confine


def request(*, bucket: str | None = None, key: str = "scan", prefix: str | None = None) -> SegmentRequest:
    return parse_request({"input": {"bucket": bucket, "key": key}, "model": "m", "output": {"prefix": prefix}})


def settings(**values: object) -> Settings:
    return Settings.model_validate(values)


@pytest.mark.parametrize("bucket", [None, "volumes", "research"])
def test_the_input_bucket_and_the_listed_ones_are_allowed(bucket: str | None) -> None:
    given = request(bucket=bucket, prefix="any/prefix")
    assert confine(given, settings(input_buckets=["research"])) == given


@pytest.mark.parametrize("bucket", ["masks", "other-tenant", "volumes2"])
def test_every_other_bucket_is_refused_and_not_quoted(bucket: str) -> None:
    with pytest.raises(BadRequest, match=r"^request\.input\.bucket: expected research or volumes$"):
        confine(request(bucket=bucket), settings(input_buckets=["research"]))
    with pytest.raises(BadRequest, match=r"^request\.input\.bucket: expected volumes$"):
        confine(request(bucket=bucket), settings())


@pytest.mark.parametrize("key", ["ct/1.nii.gz", "ct/study/", "uploads/a/b"])
@pytest.mark.parametrize("prefixes", [[], ["ct", "uploads/a"], ["uploads/", "ct/"]])
def test_keys_below_an_input_prefix_are_allowed(key: str, prefixes: list[str]) -> None:
    assert confine(request(key=key), settings(input_prefixes=prefixes)).input.key == key


@pytest.mark.parametrize("key", ["ct", "ct/", "ct2/1.nii.gz", "xct/1", "MUELLER/1", "uploads/ab"])
def test_other_keys_are_refused_and_not_quoted(key: str) -> None:
    with pytest.raises(BadRequest, match=r"^request\.input\.key: expected a key below ct/ or uploads/a/$"):
        confine(request(key=key), settings(input_prefixes=["ct", "uploads/a/"]))


@pytest.mark.parametrize("prefixes", [[], ["uploads"]])
def test_the_uploads_of_all_clients_are_no_input(prefixes: list[str]) -> None:
    with pytest.raises(BadRequest, match=r"^request\.input\.key: expected"):
        confine(request(key="uploads/"), settings(input_prefixes=prefixes))


@pytest.mark.parametrize("root", ["site/a", "site/a/"])
@pytest.mark.parametrize(
    ("prefix", "expected"), [(None, "site/a"), ("site/a", "site/a"), ("site/a/", "site/a"), ("site/a/b/", "site/a/b")]
)
def test_results_lie_below_the_root(root: str, prefix: str | None, expected: str) -> None:
    confined = confine(request(prefix=prefix), settings(output_prefix_root=root))
    assert (confined.output.prefix or "").removesuffix("/") == expected
    assert confined.output.formats == ("nifti",)


@pytest.mark.parametrize("prefix", ["site", "site/ab", "a", "other/site/a"])
def test_a_prefix_outside_the_root_is_refused(prefix: str) -> None:
    with pytest.raises(BadRequest, match=r"^request\.output\.prefix: expected site/a/ or a prefix below it$"):
        confine(request(prefix=prefix), settings(output_prefix_root="site/a"))


def test_any_output_prefix_is_allowed_without_a_root() -> None:
    assert confine(request(prefix="x/y"), settings()).output.prefix == "x/y"
    assert confine(request(), settings()).output.prefix is None


def test_each_channel_is_kept_within_the_buckets_and_prefixes() -> None:
    allowed = settings(input_buckets=["research"], input_prefixes=["ct"])

    def channels(**changes: object) -> SegmentRequest:
        return parse_request(
            {"input": {"channels": {"T1": {"key": "ct/1"}, "MUELLER": {"key": "ct/2"} | changes}}, "model": "m"}
        )

    assert confine(channels(bucket="research"), allowed) == channels(bucket="research")
    with pytest.raises(BadRequest, match=r"^request\.input\.channels\.\*\.bucket: expected research or volumes$"):
        confine(channels(bucket="masks"), allowed)
    with pytest.raises(BadRequest, match=r"^request\.input\.channels\.\*\.key: expected a key below ct/$"):
        confine(channels(key="mr/2"), allowed)
    with pytest.raises(BadRequest, match=r"^request\.input\.channels\.\*\.key: expected one upload"):
        confine(channels(key="uploads/"), settings())
