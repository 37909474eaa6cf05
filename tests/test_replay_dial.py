# SPDX-License-Identifier: Apache-2.0
"""Connections begin, against real listeners and real refusals."""

from __future__ import annotations

import _socket
import contextlib
import errno
import select
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import PATIENCE, Certificates
from loopback import refusing
from tapmirror.events import LOOP_DSCP, DropReason
from tapmirror.ledger import Ledger
from tapmirror.replay.backoff import FIRST, UNANSWERED
from tapmirror.replay.dial import Dialer
from tapmirror.replay.lane import CONNECTING, Lane, QueueMemory
from tapmirror.replay.tls import make_context
from tapmirror.spec import Limits, Tls, parse_shadow


def dialer(ledger: Ledger, *addresses: Any, **shadow: Any) -> Dialer:
    """To these addresses of IPv4, in their order."""
    found = [(socket.AF_INET, address) for address in addresses]
    return Dialer(found, Limits(connections=10), parse_shadow("127.0.0.1:80", **shadow), ledger, None)


def lane(*, http: bool = True) -> Lane:
    """A flow's."""
    return Lane(1, http, QueueMemory(1000, 1000), Ledger())


def outcome(dial: Dialer, made: Lane) -> int | None:
    """What comes of an attempt, at its first event."""
    poll = select.poll()
    poll.register(made.fd, select.POLLOUT)
    ((_, event),) = poll.poll(5000)
    return dial.proceed(made, gone=bool(event & (select.POLLERR | select.POLLHUP)))


def close(*lanes: Lane) -> None:
    for made in lanes:
        if made.sock is not None:
            made.sock.close()


@pytest.fixture
def closed_port() -> Iterator[Any]:
    """An address where nothing listens."""
    with refusing() as address:
        yield address


@pytest.mark.parametrize("http", [True, False])
def test_a_connection_bears_the_mark_and_is_open_at_its_event(http: bool) -> None:
    ledger, made = Ledger(), lane(http=http)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dial = dialer(ledger, listener.getsockname())
        assert dial.dial(made, 100.0, 0)
        assert made.state == CONNECTING
        assert (made.framer is not None) is http
        assert dial.next_deadline() is not None
        assert outcome(dial, made) == 0
    assert made.sock is not None
    assert made.sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == LOOP_DSCP << 2
    assert not dial
    assert ledger.events["shadow_connects"] == ledger.events["shadow_connected"] == 1
    close(made)


def test_the_handshake_waits_for_the_first_request() -> None:
    made = lane()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dial = dialer(Ledger(), listener.getsockname())
        assert dial.dial(made, 100.0, 0)
        assert outcome(dial, made) == 0
        assert made.sock is not None
        made.sock.send(b"GET")
        assert not made.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK)
    close(made)


def peer(made: Lane) -> Any:
    assert isinstance(made.sock, _socket.socket)
    return made.sock.getpeername()


def test_addresses_take_turns() -> None:
    lanes = [lane() for _ in range(6)]
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        names = [one.getsockname(), two.getsockname()]
        dial = dialer(Ledger(), *names)
        for made in lanes:
            assert dial.dial(made, 100.0, 0)
            assert outcome(dial, made) == 0
        assert [peer(made) for made in lanes] == names * 3
    close(*lanes)


def test_an_address_that_failed_is_left_alone_and_the_others_are_not(closed_port: Any) -> None:
    ledger, lanes = Ledger(), [lane() for _ in range(5)]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dial = dialer(ledger, closed_port, listener.getsockname())
        assert dial.dial(lanes[0], 100.0, 0)
        number = outcome(dial, lanes[0])
        assert number == errno.ECONNREFUSED
        dial.failed(lanes[0], number, 100.0)
        dial.forget(lanes[0])
        assert dial.reason is DropReason.SHADOW_DOWN and dial.elsewhere
        for made in lanes[1:4]:
            assert dial.dial(made, 100.0, 0)
            assert outcome(dial, made) == 0
            assert peer(made) == listener.getsockname()
        assert dial.dial(lanes[4], 100.0 + 2 * FIRST, 0), "its turn comes again after a pause"
        assert outcome(dial, lanes[4]) == errno.ECONNREFUSED
    assert ledger.events["connect_ECONNREFUSED"] == 1
    close(*lanes)


def test_where_all_addresses_failed_there_is_a_pause(closed_port: Any) -> None:
    dial, first, second = dialer(Ledger(), closed_port), lane(), lane()
    assert dial.dial(first, 100.0, 0)
    dial.failed(first, errno.ECONNREFUSED, 100.0)
    dial.forget(first)
    assert not dial.elsewhere
    assert not dial.dial(second, 100.0, 0)
    assert dial.reason is DropReason.SHADOW_DOWN
    assert dial.dial(second, 100.0 + FIRST, 0)
    close(first, second)


def test_an_address_that_fails_at_once_is_passed_over() -> None:
    made = lane()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dial = dialer(Ledger(), ("255.255.255.255", 80), listener.getsockname())
        assert dial.dial(made, 100.0, 0)
        assert outcome(dial, made) == 0
        assert peer(made) == listener.getsockname()
    close(made)


def test_an_address_of_a_family_that_this_host_has_not_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """As connect(2) to any IPv6 address where that is switched off; nothing listens at the reserved one here."""
    lanes = [lane() for _ in range(4)]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dial = dialer(Ledger(), ("127.0.0.1", 9), listener.getsockname())
        place = next(place for place in dial._places if place.address == ("127.0.0.1", 9))
        dial._count_failure(errno.EADDRNOTAVAIL, 100.0, 100.0, place)
        assert dial.reason is DropReason.NO_RESOURCES and dial.elsewhere
        for made in lanes:
            assert dial.dial(made, 100.0, 0)
            assert outcome(dial, made) == 0
    close(*lanes)


def test_after_a_shortage_the_shadow_is_told_from_it(closed_port: Any) -> None:
    dial, made, other = dialer(Ledger(), closed_port), lane(), lane()
    reasons = []
    assert not dial.dial(made, 100.0, 10)
    reasons.append(dial.reason)
    assert dial.dial(made, 101.0, 0)
    dial.failed(made, outcome(dial, made) or 0, 101.0)
    dial.forget(made)
    assert not dial.dial(other, 101.0, 0)
    reasons.append(dial.reason)
    assert reasons == [DropReason.NO_RESOURCES, DropReason.SHADOW_DOWN]
    close(made)


def test_new_addresses_leave_what_is_known_of_old_ones(closed_port: Any) -> None:
    dial, first, second = dialer(Ledger(), closed_port), lane(), lane()
    assert dial.dial(first, 100.0, 0)
    dial.failed(first, errno.ECONNREFUSED, 100.0)
    dial.readdress([(socket.AF_INET, closed_port)])
    assert not dial.dial(second, 100.0, 0)
    dial.forget(first)
    close(first)


def test_new_addresses_are_for_new_connections(closed_port: Any) -> None:
    made = lane()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dial = dialer(Ledger(), closed_port)
        dial.readdress([(socket.AF_INET, listener.getsockname())])
        assert dial.dial(made, 100.0, 0)
        assert outcome(dial, made) == 0
    close(made)


def test_at_the_limit_of_connections_there_is_no_attempt(closed_port: Any) -> None:
    ledger = Ledger()
    dial = dialer(ledger, closed_port)
    assert not dial.dial(lane(), 100.0, 10)
    assert dial.reason is DropReason.NO_RESOURCES
    assert not ledger.events["shadow_connects"]


def test_an_address_that_cannot_be_connected_to_at_all() -> None:
    ledger, made = Ledger(), lane()
    dial = dialer(ledger, ("255.255.255.255", 80))
    assert not dial.dial(made, 100.0, 0)
    assert made.sock is None
    assert [name for name in ledger.events if name.startswith("connect_")]


def test_an_attempt_has_its_time(closed_port: Any) -> None:
    dial, first, second = dialer(Ledger(), closed_port, connect_time=3.0), lane(), lane()
    dial.dial(first, 100.0, 0)
    dial.dial(second, 100.5, 1)
    assert dial.next_deadline() == 103.0
    assert [dial.overdue(now) for now in (102.9, 103.0)] == [None, first]
    dial.forget(first)
    assert dial.overdue(103.0) is None
    assert dial.overdue(103.5) is second
    close(first, second)


def test_a_silent_address_is_not_waited_for_where_another_one_is_up(closed_port: Any) -> None:
    ledger, made = Ledger(), lane()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dial = dialer(ledger, closed_port, listener.getsockname(), connect_time=3.0)
        assert dial.dial(made, 100.0, 0)
        assert dial.next_deadline() == 100.0 + UNANSWERED
        assert [dial.overdue(now) for now in (100.9, 101.0)] == [None, made]
        dial.failed(made, errno.ETIMEDOUT, 101.0)
        dial.forget(made)
        close(made)
        assert dial.dial(made, 101.0, 0)
        assert peer(made) == listener.getsockname()
        assert dial.next_deadline() == 104.0, "there is no other"
    close(made)


def test_who_has_answered_has_the_whole_time_for_tls() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        shadow = parse_shadow("127.0.0.1:80", connect_time=3.0, tls=Tls())
        addresses = [(socket.AF_INET, each.getsockname()) for each in (one, two)]
        dial, made = Dialer(addresses, Limits(), shadow, Ledger(), make_context(Tls(), "127.0.0.1")), lane()
        assert dial.dial(made, 100.0, 0)
        assert outcome(dial, made) is None
        assert dial.next_deadline() == 103.0
    close(made)


@pytest.mark.parametrize("name", ["new.test", "old.test"])
def test_a_certificate_that_is_not_trusted_is_told(name: str, tmp_path: Path) -> None:
    """An authority that is not known, or a name that is not in it."""
    certificates = Certificates(tmp_path, "new.test")
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificates.server, certificates.server_key)
    of = Tls(sni=name, ca_file=str(certificates.server if name == "new.test" else certificates.authority))
    ledger, made = Ledger(), lane()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        context = make_context(of, name)
        shadow = parse_shadow("127.0.0.1:443", tls=of)
        dial = Dialer([(socket.AF_INET, listener.getsockname())], Limits(), shadow, ledger, context)
        assert dial.dial(made, 100.0, 0)
        assert outcome(dial, made) is None
        plain, _ = listener.accept()
        peer = server_side.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        with peer:
            peer.setblocking(False)
            failed = None
            while failed is None:
                with contextlib.suppress(ssl.SSLWantReadError):
                    peer.do_handshake()
                failed = dial.proceed(made, gone=False)
        assert failed == errno.EPROTO
    assert (ledger.events["tls_failures"], ledger.events["tls_untrusted"]) == (1, 1)
    close(made)


def test_who_speaks_no_tls_is_not_told_as_untrusted() -> None:
    """Not even by a count of 0, which people would read as a hint."""
    of = Tls(sni="new.test")
    ledger, made = Ledger(), lane()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        shadow = parse_shadow("127.0.0.1:443", tls=of)
        context = make_context(of, "new.test")
        dial = Dialer([(socket.AF_INET, listener.getsockname())], Limits(), shadow, ledger, context)
        assert dial.dial(made, 100.0, 0)
        assert outcome(dial, made) is None
        peer, _ = listener.accept()
        with peer:
            peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            assert select.select([made.fd], [], [], PATIENCE)[0]
            assert outcome(dial, made)
    assert ledger.events["tls_failures"] == 1 and "tls_untrusted" not in ledger.events
    close(made)
