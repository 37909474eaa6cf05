/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the capture program and user space agree on.  The Python side is RECORD in tapmirror/source/ring.py, CONFIG
 * and ENDPOINT in tapmirror/loader.py, Counters in tapmirror/source/__init__.py; tests/test_loader.py holds both
 * against each other.  Little endian where nothing else is said, as the hosts are that this runs on.
 */
#ifndef TAPMIRROR_TAP_H
#define TAPMIRROR_TAP_H

/* A connection.  IPv4 addresses as ::ffff:a.b.c.d.  vlan: outer << 16 | inner, or the only one, or 0. */
struct tap_key {
	__u8 client[16];
	__u8 server[16];
	__be16 client_port;
	__be16 server_port;
	__u32 vlan;
};

/*
 * One record of the ring; `caplen` bytes of payload follow.  `flags`: TCP's in the low byte, those below, and with
 * URG the urgent pointer in the upper half.
 */
struct tap_record {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u32 seq;
	__u32 ack;
	__u32 length; /* of the payload on the wire */
	__u32 caplen;
	__u32 hash;
	__u32 flags;
	struct tap_key key;
};

#define TAP_FROM_SERVER 0x100
/* No packet of its own: production has accepted the connection; seq and ack are the first bytes of client and server. */
#define TAP_ACCEPTED 0x200
/* In its place: the same, of a connection of Multipath TCP, which cannot be followed. */
#define TAP_MULTIPATH 0x400
/* Of a client's packet: its handshake is complete, and production has not yet shown that it accepted the connection. */
#define TAP_UNACCEPTED 0x800

/* Payload bytes of one record at most, and records of one packet: BIG TCP packets have up to 524,280 bytes. */
#define TAP_CHUNK 65536
#define TAP_MAX_CHUNKS 9

/* What is captured; written before the program is attached.  Threshold and links may change later. */
#define TAP_MAX_ADDRS 16
#define TAP_MAX_CLIENTS 32
#define TAP_LOOPBACK 1	 /* the interface shows each packet twice */
#define TAP_EGRESS_ALL 2 /* a record for each packet of production */
#define TAP_NO_L2 4	 /* packets begin with the IP header */
#define TAP_PROMISC 8	 /* a mirror port: packets are for other stations, production's come in too */
#define TAP_MANY 16	 /* several interfaces, which may show one packet: VLANs do not tell flows apart */
/* Production may be behind the interface (a container): its address alone tells.  What it sends comes in at a port of a
 * bridge, for the bridge's station and not for the port's: packets for other stations count. */
#define TAP_EITHER_WAY 32
#define TAP_MAX_LINKS 16

/* An interface whose packets are to be read in another way: TAP_LOOPBACK, TAP_NO_L2. */
struct tap_link {
	__u32 ifindex;
	__u32 flags;
};

struct tap_endpoint {
	__u8 addr[16];
	__be16 port;
	__u16 pad;
	__u32 pad2;
};

/* A network of clients that are captured: so many bits of an address. */
struct tap_network {
	__u32 bits;
	__u8 addr[16];
};

struct tap_config {
	__u64 threshold; /* flows whose hash is below it are mirrored */
	__u32 seed;	 /* of that hash */
	__u32 flags;
	__u32 addr_count; /* 0: all addresses */
	__u32 excluded_count;
	__u32 dscp; /* of packets that no tap may capture */
	__u32 link_count;
	__u32 client_count; /* 0: any client */
	__u32 response_bytes; /* copied of each of production's segments, if its flow's responses are wanted; 0: none */
	__u32 zero;	    /* is 0, which the verifier does not know */
	__u32 probe;	    /* first sequence number of the SYN that looks whether a shadow leads back; 0: none */
	__u8 addrs[TAP_MAX_ADDRS][16];
	struct tap_endpoint excluded[TAP_MAX_ADDRS];
	struct tap_link links[TAP_MAX_LINKS];
	__u8 ports[8192]; /* a bit for each */
};

/*
 * Counters, in the order of `Counters`.  The first seven count segments with payload from the client, so that
 * SEEN = EMITTED + SAMPLED_OUT + LOOP + RING_FULL + FRAGMENT + CLIENT; the others count packets.
 */
enum {
	TAP_SEEN,
	TAP_EMITTED,
	TAP_SAMPLED_OUT,
	TAP_LOOP,
	TAP_RING_FULL,
	TAP_FRAGMENT,
	TAP_CLIENT, /* of none of the networks that are captured */
	TAP_SYN,
	TAP_SYN_ACK,
	TAP_ACCEPTED_COUNT,
	TAP_BARE_ACK,
	TAP_EGRESS,
	TAP_CONTROL_LOST,   /* records without payload that the ring had no room for */
	TAP_LOOP_SYN,	    /* that bear the mark, or are the probe's */
	TAP_RESPONSES,	    /* segments of production with payload that became records with it */
	TAP_RESPONSES_LOST, /* that did not: the ring was half full, and the rest is the clients' */
	TAP_COUNTERS = 16
};

struct tap_counter {
	__u64 records;
	__u64 bytes;
};

/*
 * Which acknowledgements of production become records, by the low 16 bits of the flow's hash: all in the buckets with
 * TAP_WANT_ALL, and the next packet only where `once` is set.  Production's payload does too in the buckets with
 * TAP_WANT_RESPONSES and in the window of the flow's worker: so many buckets, from the first on and around.
 *
 * While the program runs, only user space writes to `bucket` and only the program writes to `once`: neither can undo
 * what the other writes at the same time.  But a worker that takes over from one that died sets `once` again: at worst
 * one packet less becomes a record.
 */
#define TAP_WANT_ALL 1
#define TAP_WANT_RESPONSES 2

#define TAP_MAX_WORKERS 64

struct tap_window {
	__u32 first;
	__u32 count;
};

struct tap_wants {
	__u8 bucket[65536];
	struct tap_window window[TAP_MAX_WORKERS];
	__u8 once[65536];
};

/* Of a handshake that production answered: first sequence number of each side, and what to tell once it accepted.
 * Before that, of a SYN with data (RFC 7413): the number that acknowledges it all, and TAP_EARLY alone. */
struct tap_first {
	__u32 client;
	__u32 server;
	__u32 flags;
};

#endif
