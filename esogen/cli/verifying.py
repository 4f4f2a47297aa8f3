"""What `--verify` says of a comparison."""

from typing import TYPE_CHECKING

import typer

from esogen.errors import EsogenError

if TYPE_CHECKING:
    from esogen.generate.verify import Agreement

TOLERANCE = 1e-4
"""How far log-probabilities may differ with and without the cache, in nats, at float32."""


def judge(found: "Agreement", dtype: str) -> None:
    """Say how two ways of computing agree; raises `EsogenError` where they must not differ."""
    typer.echo(
        f"verify: {found.draws} draws, {found.different} different, {found.edge} edge draws,"
        f" {found.unexplained} unexplained,"
        f" largest log-probability difference {found.log_prob_difference:.2g}",
        err=True,
    )
    if found.unexplained:
        raise EsogenError(
            f"--verify: {found.unexplained} of {found.draws} draws differ for another reason than"
            " rounding; do not trust the KV cache here: use --no-kv-cache, and report this"
        )
    if dtype == "fp32" and not found.log_prob_difference <= TOLERANCE:
        raise EsogenError(
            f"--verify: log-probabilities differ by {found.log_prob_difference:.2g}, and may by"
            f" {TOLERANCE:g}; do not trust the KV cache here: use --no-kv-cache, and report this"
        )
