# SPDX-License-Identifier: Apache-2.0
"""Comparison: what the shadow answers differently from production, by how much, and whether that is certain.

How to feed it
--------------
There is one `Comparison` for each worker.  It is told what happens, with `now` (seconds) and times (nanoseconds of the
clock of the capture), never waits for anything, and can be asked for its `snapshot()` at any time.

    comparison = Comparison(spec.compare, [("new", "http://10.0.0.2:8080")], redaction, expressions)

    # a connection of production's: `flow` is any number that names it
    talk = comparison.opened(flow, midstream)

    # the client's side, in the order of the stream; requests are numbered by the caller
    probed = comparison.request(flow, number, head, flags, now)
    talk.request_ended(number, time_ns)        # its last byte was seen at the interface
    talk.request_broken(number)                #   or it was not seen whole
    talk.requests_lost()                       # bytes went by in which requests may have begun

    # production's side: its stream as reassembled.  What it sent before a request (by the acknowledgement
    # number that came with the request) is fed before the request, gaps included.
    talk.production_data(data, time_ns)
    talk.production_gap(size, time_ns)         # not seen; or not copied, for `talk.production_skippable()` said so
    talk.production_ended(time_ns, reset)

    # each shadow's side, by its number; a probed request goes there once more, as `shadow + PROBE`,
    # on a connection of its own
    talk.asked(shadow, number, flags)          # before the first byte is sent
    talk.sent(shadow, number, time_ns, rtt_ns, least_ns)  # after the last one
    talk.left_out(shadow, number, reason)      # in place of both, or when it was given up half way
    talk.decided(number)                       # after the last `asked` or `left_out` of a request
    talk.shadow_data(shadow, data, time_ns)
    talk.shadow_gap(shadow, size, time_ns)     # discarded unread, at most `talk.shadow_skippable(shadow)`
    talk.shadow_ended(shadow, time_ns, reset)  # the shadow closed the connection
    talk.given_up(shadow, reason)              # the tap did

    comparison.closed(flow, reason)            # the connection and its copies are over
    comparison.settle()                        # a few times a second: exchanges are compared in batches
    comparison.tick(now, time_ns)              # once a second
    comparison.close()

The snapshots of all workers go into `merge`, a state of a shadow into `figures`, and these to `tapmirror.report`.
To watch it, `comparison.brief()` is enough: some hundred numbers, which add up.

The modules: `pairing` brings requests and responses together; `bodies` and `diff` compare two responses; `identifiers`
recognises what each version generates, `noise` what differs by itself, and `probes` chooses the requests that are sent
twice to learn that; `words` and `endpoints` group requests; `sketch`, `statistics` and `verdict` count and judge;
`summary` is the state, `samples` are for people, `figures` are the results, and `brief` has them in a few numbers.

Pure: nothing here knows sockets, the clock or chance.
"""
