# SPDX-License-Identifier: Apache-2.0
"""Figures in which every text that can come from the network is an attack."""

from __future__ import annotations

from typing import Final

from lab.exchanges import Feed
from tapmirror.compare.figures import Figures, figures, merge
from tapmirror.compare.summary import Endpoint, Field, Sample, State
from tapmirror.compare.verdict import VerdictLimits
from tapmirror.spec import Compare, Level

ATTACKS: Final = (
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "</pre></style><svg onload=\"document.title='owned'\">",
    "javascript:alert(1) [x](javascript:alert(1)) | `code` \x1b[31mred\x07 [bold]markup[/bold]",
    "{{7*7}}\u202eevil & <a href='//evil.example'>",
)


def shop(variant: str, requests: int) -> Figures:
    """Of the small shop of the lab."""
    feed = Feed(variant).run(requests)
    ((label, state),) = merge([feed.comparison.snapshot()], feed.spec).items()
    return figures("shop", label, state, feed.spec, VerdictLimits())


def empty() -> Figures:
    """Of a tap that has seen nothing."""
    return figures("shop", "v2", State(level="status"), Compare(level=Level.STATUS), VerdictLimits())


def hostile() -> Figures:
    """Of everything that a client, production and the shadow may say."""
    state = State(level="body", began=0.0, ended=1.0, requests=10)
    for n, attack in enumerate(ATTACKS):
        endpoint = Endpoint(pairs=10, compared=10, only_shadow=n)
        endpoint.production.statuses = {200: 10}
        endpoint.shadow.statuses = {200: 5, 999: 4, 0: 1}
        endpoint.skipped = {attack: 3}
        sample = Sample(0.0, attack, attack, attack, attack, attack)
        endpoint.fields = {f"value {attack}": Field(raw=10, samples=[sample]), f"{attack} x": Field(raw=9)}
        noise = f"value noise {attack}"
        endpoint.fields[noise] = Field(raw=10, probes=30)
        endpoint.probed = 30
        endpoint.signatures = {f"value {attack}": 10}
        state.endpoints[attack] = endpoint
        state.unpaired[attack] = 1
        state.failures[attack] = 1
        state.notes.append(attack)
    return figures(ATTACKS[0], ATTACKS[1], state, Compare(level=Level.BODY), VerdictLimits())
