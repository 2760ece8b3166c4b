"""The configuration of NATs, and what people get to see of a node's reachability."""

from __future__ import annotations

import msgspec
from shoal.node.config import NatSection
from shoal.protocols.p2p.nat_limits import NatLimits


def test_every_limit_has_a_key_in_the_configuration_with_the_same_default():
    assert NatSection.__struct_fields__ == NatLimits.__struct_fields__
    assert msgspec.convert(NatSection(), NatLimits, from_attributes=True) == NatLimits()
