/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef TAPMIRROR_TAP_H
#define TAPMIRROR_TAP_H
struct tap_key {
	__u8 client[16];
	__u8 server[16];
	__be16 client_port;
	__be16 server_port;
	__u32 vlan;
};
struct tap_record {
	__u64 time_ns;
	__u32 seq;
	__u32 ack;
	__u32 length;
	__u32 caplen;
	__u32 hash;
	__u16 flags;
	__u16 window;
	struct tap_key key;
};
#define TAP_FROM_SERVER 0x100
#define TAP_ACCEPTED 0x200
struct tap_endpoint { __u8 addr[16]; __be16 port; __u16 pad; __u32 pad2; };
#define TAP_MAX_ADDRS 16
#define TAP_LOOPBACK 1
#define TAP_EGRESS_ALL 2
#define TAP_NO_L2 4
struct tap_config {
	__u64 threshold;
	__u32 seed;
	__u32 flags;
	__u32 addr_count;
	__u32 excluded_count;
	__u32 dscp;
	__u32 pad;
	__u8 addrs[TAP_MAX_ADDRS][16];
	struct tap_endpoint excluded[TAP_MAX_ADDRS];
	__u8 ports[8192];
};
enum { TAP_SEEN, TAP_EMITTED, TAP_SAMPLED_OUT, TAP_LOOP, TAP_RING_FULL, TAP_FRAGMENT, TAP_SYN, TAP_SYN_ACK,
       TAP_ACCEPTED_COUNT, TAP_BARE_ACK, TAP_EGRESS, TAP_CONTROL_LOST, TAP_LOOP_SYN, TAP_COUNTERS = 16 };
struct tap_counter { __u64 records; __u64 bytes; };
#define TAP_CHUNK 65536
#define TAP_MAX_CHUNKS 9
/* Of a bucket: the next packet of production only, or all until it is cleared. */
#define TAP_WANT_ONE 1
#define TAP_WANT_ALL 2
struct tap_wants { __u8 bucket[65536]; };
struct tap_first { __u32 client; __u32 server; };
#endif
