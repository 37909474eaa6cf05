# SPDX-License-Identifier: Apache-2.0
"""What production may send behind its SYN-ACK, and whether it shows that the connection is accepted.

For both captures, which must say the same.  The SYN-ACK had the number 499 and acknowledged 100.
"""

from __future__ import annotations

from typing import Final

from tapmirror.admission import EARLY

BEHIND_A_SYN_ACK: Final = [
    # flags, seq, ack, payload, whether it shows it
    ("A", 500, 103, b"", True),
    ("A", 500, 101, b"", True),
    ("A", 500, 99 + EARLY, b"", True),
    ("PA", 500, 100, b"banner", True),
    ("PA", 700, 103, b"what follows an answer that was not seen", True),
    ("FA", 500, 100, b"", True),
    ("A", 500, 100, b"", False),  # tcp_v4_reqsk_send_ack(): it acknowledges no more than the SYN
    ("A", 500, 99, b"", False),
    ("A", 500, 100 + EARLY, b"", False),  # of an earlier connection with the same ports
    ("A", 499, 103, b"", False),
    ("PA", 500 + EARLY, 100, b"banner", False),
    ("P", 500, 103, b"banner", False),
    ("RA", 500, 103, b"", True),  # tcp_send_active_reset(): of a connection whose data it has
    ("RA", 500, 100, b"", False),
    ("RA", 500, 99, b"", False),
    ("R", 500, 103, b"", False),  # tcp_v4_send_reset(): what it answers is of none
]
