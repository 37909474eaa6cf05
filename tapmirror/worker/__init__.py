# SPDX-License-Identifier: Apache-2.0
"""The worker process: capture source, pipeline and replay in one loop, without privilege.

It is started by the supervisor as `python -m tapmirror.worker FD CONTRACT` (`__main__`), with one end of a socket pair,
and exits if its own `contract` is another one.  It imports what it needs, receives its set-up and its descriptors,
gives up every privilege (`setup`), and only then looks at a byte of the network (`loop`).

Over the same socket the supervisor asks for the ledger (`snapshot`), changes the share (`share`) and ends the tap
(`drain`).  If the supervisor dies, the socket ends, and the worker drains and exits.  If the worker dies, another one
takes its place at the same capture and continues with its ledgers (`handover`).
"""
