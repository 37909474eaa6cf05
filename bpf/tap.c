/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The capture program: a socket filter that always returns 0.
 *
 * The kernel shows it each packet of an interface, both directions, before netfilter (ingress) and after the
 * queueing discipline (egress).  It may read and may not change, delay or drop; "accepting" nothing, it queues
 * nothing to its socket.  What matches goes into the ring:
 *
 *   from a client   payload, and FIN, RST and URG; a SYN is only counted
 *   from production FIN and RST; what else user space asked for (struct tap_wants), without payload; and where
 *                   responses are compared, the first bytes of each segment with payload
 *   ACCEPTED        once production's SYN-ACK was seen, and behind it what only a connection sends that was accepted:
 *                   SYNs that a firewall turned away never get that far, nor handshakes that are complete and that a
 *                   full accept queue turned away; until then a connection costs a place among those of its hash,
 *                   and from the completed handshake on an entry of an LRU map, and the client's packets bear
 *                   UNACCEPTED; MULTIPATH in its place where both sides speak Multipath TCP
 *
 * Order of the decisions for a client's packet: match, loop mark, client, sample, fragment.  Each is counted.
 * User space has the same rules in tapmirror/admission.py; a test holds one against the other.
 *
 * NOTE: the program has no direct packet access: a header costs one bpf_skb_load_bytes, into the stack.
 */
#include "tap.h"

/* skb->pkt_type, of linux/if_packet.h */
#define OUTGOING 4
#define OTHERHOST 3
#define PROTO_TCP 6

#define FIN 0x01
#define SYN 0x02
#define RST 0x04
#define PSH 0x08
#define ACK 0x10
#define URG 0x20

/* TAP_WORKERS: how many share the flows; each has a ring and counters of its own.  All sums are of one worker. */
#define COUNTERS (TAP_WORKERS * TAP_CPUS * TAP_COUNTERS)

/* The first worker's ring, and the pattern of the others'. */
BPF_RINGBUF_OUTPUT(ring, TAP_RING_PAGES);
BPF_ARRAY_OF_MAPS(rings, "ring", TAP_WORKERS);
BPF_F_TABLE("array", u32, struct tap_config, config, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct tap_counter, counters, COUNTERS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct tap_wants, wants, 1, BPF_F_MMAPABLE);
BPF_LPM_TRIE(clients, struct tap_network, u8, TAP_MAX_CLIENTS);
/* Handshakes that the client completed.  Who writes under another's address cannot, so no flood of SYNs comes in here. */
BPF_TABLE("lru_hash", struct tap_key, struct tap_first, completed, 32768);

/*
 * Those before, by the flow's hash: a new one takes the place of the oldest of seven.  One matters until its client answers.
 * If that takes 0.3 s, one in 10^11 is displaced before where 5,000 a second begin; in a flood of 100,000, three in 1,000.
 */
#define PLACES 16384
#define WAYS 7

struct answered {
	u32 hash;
	struct tap_first first;
};

struct place {
	u64 settled; /* a flow (name_of) of which there is no handshake, as of most packets': it need not be looked up */
	u32 next;    /* whose turn it is to be displaced */
	u32 pad;
	struct answered way[WAYS + 1]; /* the last one stays empty: it is what is found where there is none */
};

BPF_ARRAY(places, struct place, PLACES);

/* What the headers say; options (of TCP) and payload are offsets into the packet. */
struct seen {
	u32 options;
	u32 payload;
	u32 length;
	u32 seq;
	u32 ack;
	u32 flags;
	u8 dscp;
	u8 fragment;
	u8 later_fragment;
};

static inline void count(u32 shard, u32 what, u32 records, u64 bytes)
{
	u32 index = (shard * TAP_CPUS + bpf_get_smp_processor_id() % TAP_CPUS) * TAP_COUNTERS + what;
	struct tap_counter *c = counters.lookup(&index);
	if (c) {
		__sync_fetch_and_add(&c->records, records);
		__sync_fetch_and_add(&c->bytes, bytes);
	}
}

static inline u32 flow_hash(const struct tap_key *key, u32 seed)
{
	const u32 *w = (const u32 *)key;
	u32 h = seed;
/* Before Linux 6.7 a program of more than 20 KiB cannot be attached (net.core.optmem_max). */
#pragma clang loop unroll(disable)
	for (int i = 0; i < 10; i++) {
		h = (h ^ w[i]) * 0x9E3779B1u;
		h ^= h >> 15;
	}
	h ^= h >> 16;
	h *= 0x85EBCA6Bu;
	h ^= h >> 13;
	h *= 0xC2B2AE35u;
	return h ^ (h >> 16);
}

/*
 * The worker that a flow belongs to.  By the bucket of `wants` that the flow is in, so that each bucket is one
 * worker's.  The bucket is mixed: a small threshold leaves only hashes below it, so not all of its values, and
 * yet every worker shall have its part of them.
 */
static inline u32 shard_of(u32 hash)
{
	return (((hash & 0xffff) * 0x9E3779B1u) >> 16) * TAP_WORKERS >> 16;
}

/*
 * 1 if no bit differs, else 0.  The tables below are searched without a branch on what is compared: the verifier would
 * follow both ways of each, and of all that comes after them, and give up.
 */
static inline u64 none(u64 differs)
{
	u64 negative = -differs;
	/* Or the compiler sees what is meant, and makes a branch of it. */
	asm volatile("" : "+r"(negative));
	return ((differs | negative) >> 63) ^ 1;
}

static inline u64 differ(const u8 *a, const u8 *b)
{
	const u64 *x = (const u64 *)a, *y = (const u64 *)b;
	return (x[0] ^ y[0]) | (x[1] ^ y[1]);
}

static inline int has_port(struct tap_config *c, __be16 port)
{
	u16 p = bpf_ntohs(port);
	return c->ports[(p >> 3) & 8191] & (1 << (p & 7));
}

/*
 * The same value, of which the verifier knows nothing: else it follows each way that led to one through all that
 * comes after.
 */
static inline u32 forget(const struct tap_config *c, u32 value)
{
	return value ^ c->zero;
}

/* Whether (addr, port) is production's end. */
static inline int is_production(struct tap_config *c, const u8 *addr, __be16 port)
{
	if (!has_port(c, port))
		return 0;
	u64 excluded = 0, found = 0;
	for (u32 i = 0; i < TAP_MAX_ADDRS; i++) {
		if (i >= c->excluded_count)
			break;
		excluded |= none(differ(c->excluded[i].addr, addr) | (c->excluded[i].port ^ port));
	}
	if (excluded)
		return 0;
	if (!c->addr_count)
		return 1;
	for (u32 i = 0; i < TAP_MAX_ADDRS; i++) {
		if (i >= c->addr_count)
			break;
		found |= none(differ(c->addrs[i], addr));
	}
	return found != 0;
}

/* A slot of the worker's ring; NULL where there is no room. */
static inline struct tap_record *reserve(u32 shard, u32 room)
{
	void *of = rings.lookup(&shard);
	return of ? bpf_ringbuf_reserve(of, sizeof(struct tap_record) + room, 0) : NULL;
}

/* Whether connections from this address are captured. */
static inline int is_client(struct tap_config *c, const u8 *addr)
{
	if (!c->client_count)
		return 1;
	struct tap_network n = {.bits = 128};
	__builtin_memcpy(n.addr, addr, 16);
	return clients.lookup(&n) != 0;
}

static inline void fill(struct tap_record *r, const struct tap_key *key, const struct seen *p, u32 hash)
{
	r->time_ns = bpf_ktime_get_ns();
	r->seq = p->seq;
	r->ack = p->ack;
	r->hash = hash;
	r->key = *key;
}

/* A record without payload; 0 where there was no room. */
static inline int emit_bare(const struct tap_key *key, const struct seen *p, u32 hash, u32 flags, u32 length)
{
	u32 shard = shard_of(hash);
	struct tap_record *r = reserve(shard, 0);
	if (!r) {
		count(shard, TAP_CONTROL_LOST, 1, 0);
		return 0;
	}
	fill(r, key, p, hash);
	r->flags = flags;
	r->length = length;
	r->caplen = 0;
	bpf_ringbuf_submit(r, 0);
	return 1;
}

/* Room of the smallest slot that takes `size` bytes.  Constant on each path, as the verifier wants it. */
static inline u32 room_for(u32 size)
{
	if (size <= 128)
		return 128;
	if (size <= 256)
		return 256;
	if (size <= 512)
		return 512;
	if (size <= 1024)
		return 1024;
	if (size <= 2048)
		return 2048;
	if (size <= 4352)
		return 4352;
	if (size <= 9216)
		return 9216;
	if (size <= 17408)
		return 17408;
	if (size <= 26112)
		return 26112;
	if (size <= 34816)
		return 34816;
	if (size <= 52736)
		return 52736;
	return TAP_CHUNK;
}

/* One record with `size` bytes from `offset` of the packet, for `length`; 0 where there was no room. */
static inline int emit(struct __sk_buff *skb, const struct tap_key *key, const struct seen *p, u32 hash, u32 flags,
		       u32 seq, u32 offset, u32 length, u32 size, u32 room)
{
	struct tap_record *r = reserve(shard_of(hash), room);
	if (!r)
		return 0;
	fill(r, key, p, hash);
	r->seq = seq;
	r->flags = flags;
	r->length = length;
	r->caplen = size;
	/*
	 * The value that is checked is the one that is used, and in one comparison: older verifiers (Linux 6.1) carry no
	 * bound from a register to another one that differs from it by 1, and learn nothing from "not 0".
	 */
	u64 last = (u64)size - 1;
	asm volatile("" : "+r"(last));
	if (last >= room || bpf_skb_load_bytes(skb, offset, (void *)(r + 1), last + 1)) {
		bpf_ringbuf_discard(r, BPF_RB_NO_WAKEUP);
		return 0;
	}
	bpf_ringbuf_submit(r, 0);
	return 1;
}

/* The addresses, as IPv6 ones; *next is the protocol, returns the offset of what follows, 0 if it is no use. */
static inline u32 parse_ip4(struct __sk_buff *skb, u32 l3, u8 *src, u8 *dst, struct seen *p, u8 *next, u32 *end)
{
	struct {
		u8 ver_ihl, tos;
		__be16 len, id, frag;
		u8 ttl, proto;
		u16 check;
		u32 src, dst;
	} ip;
	if (bpf_skb_load_bytes(skb, l3, &ip, sizeof(ip)))
		return 0;
	if (ip.ver_ihl >> 4 != 4 || (ip.ver_ihl & 15) < 5)
		return 0;
	u32 total = bpf_ntohs(ip.len);
	/* BIG TCP: the length field cannot hold it and is 0. */
	*end = total ? l3 + total : skb->len;
	if (*end > skb->len)
		*end = skb->len;
	*next = ip.proto;
	p->dscp = ip.tos >> 2;
	p->fragment = (bpf_ntohs(ip.frag) & 0x3fff) != 0;
	p->later_fragment = (bpf_ntohs(ip.frag) & 0x1fff) != 0;
	((u32 *)src)[2] = bpf_htonl(0xffff);
	((u32 *)src)[3] = ip.src;
	((u32 *)dst)[2] = bpf_htonl(0xffff);
	((u32 *)dst)[3] = ip.dst;
	return l3 + (ip.ver_ihl & 15) * 4;
}

#define MAX_EXTENSIONS 6
/* Hop-by-hop options, routing, fragment, destination options: a bit for each. */
#define EXTENSIONS (1ull << 0 | 1ull << 43 | 1ull << 44 | 1ull << 60)

static inline u32 parse_ip6(struct __sk_buff *skb, const struct tap_config *c, u32 l3, u8 *src, u8 *dst,
			    struct seen *p, u8 *next, u32 *end)
{
	struct {
		__be32 flow;
		__be16 len;
		u8 next, hops;
		u8 src[16], dst[16];
	} ip;
	if (bpf_skb_load_bytes(skb, l3, &ip, sizeof(ip)))
		return 0;
	u32 flow = bpf_ntohl(ip.flow);
	if (flow >> 28 != 6)
		return 0;
	/* Jumbo payload (RFC 2675), or BIG TCP: the length is 0. */
	*end = ip.len ? l3 + 40 + bpf_ntohs(ip.len) : skb->len;
	if (*end > skb->len)
		*end = skb->len;
	p->dscp = (flow >> 22) & 0x3f;
	__builtin_memcpy(src, ip.src, 16);
	__builtin_memcpy(dst, ip.dst, 16);
	u32 off = l3 + 40;
	u8 proto = ip.next;
	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		u8 head[4];
		if (proto > 63 || !(EXTENSIONS >> proto & 1))
			break;
		if (bpf_skb_load_bytes(skb, off, head, 4))
			return 0;
		u64 fragment = none(proto ^ 44);
		u32 place = (head[2] << 8 | head[3]) & -(u32)fragment;
		p->fragment |= none(place & 0xfff9) ^ 1;
		p->later_fragment |= none(place & 0xfff8) ^ 1;
		off += 8 + (head[1] * 8 & -(u32)(fragment ^ 1));
		proto = head[0];
	}
	p->fragment = forget(c, p->fragment);
	p->later_fragment = forget(c, p->later_fragment);
	*next = forget(c, proto);
	return forget(c, off);
}

/* Offset of the network header and its EtherType; VLAN ids into *vlan. */
static inline u32 parse_link(struct __sk_buff *skb, const struct tap_config *c, u32 flags, u32 *vlan, u16 *type)
{
	u32 off = 0;
	*type = bpf_ntohs(skb->protocol);
	if (skb->vlan_present)
		*vlan = skb->vlan_tci & 0xfff;
	if (flags & TAP_NO_L2)
		return 0;
	off = 12;
	__be16 t;
	if (bpf_skb_load_bytes(skb, off, &t, 2))
		return 0;
	for (int i = 0; i < 2; i++) {
		/* The last two are from before IEEE 802.1ad: the kernel never takes those out of the frame. */
		if (t != bpf_htons(0x8100) && t != bpf_htons(0x88a8) && t != bpf_htons(0x9100) &&
		    t != bpf_htons(0x9200))
			break;
		__be16 tag[2];
		if (bpf_skb_load_bytes(skb, off + 2, tag, 4))
			return 0;
		*vlan = *vlan << 16 | (bpf_ntohs(tag[0]) & 0xfff);
		t = tag[1];
		off += 4;
	}
	*vlan = forget(c, *vlan);
	*type = bpf_ntohs(t);
	return forget(c, off + 2);
}

static inline int parse_tcp(struct __sk_buff *skb, u32 l4, u32 end, __be16 *sport, __be16 *dport, struct seen *p)
{
	struct {
		__be16 src, dst;
		__be32 seq, ack;
		u8 off, flags;
		__be16 window, check, urgent;
	} tcp;
	if (bpf_skb_load_bytes(skb, l4, &tcp, sizeof(tcp)))
		return 0;
	u32 header = (tcp.off >> 4) * 4;
	if (header < 20 || l4 + header > end)
		return 0;
	*sport = tcp.src;
	*dport = tcp.dst;
	p->seq = bpf_ntohl(tcp.seq);
	p->ack = bpf_ntohl(tcp.ack);
	p->flags = tcp.flags & 0x3f;
	if (p->flags & URG)
		p->flags |= (u32)bpf_ntohs(tcp.urgent) << 16;
	p->options = l4 + sizeof(tcp);
	p->payload = l4 + header;
	p->length = end - p->payload;
	return 1;
}

/*
 * Production's payload, as much of it as is compared; 0 where it was not copied.  Only while half of the ring is free:
 * comparison may lose what it wants, and must not cost a client's segment.  NOTE: of a packet beyond TAP_CHUNK the
 * rest is not copied.
 */
static inline int response(struct __sk_buff *skb, struct tap_config *c, const struct tap_key *key, const struct seen *p,
			   u32 hash)
{
	u32 size = p->length < c->response_bytes ? p->length : c->response_bytes;
	if (size > TAP_CHUNK)
		size = TAP_CHUNK;
	u32 shard = shard_of(hash);
	void *of = rings.lookup(&shard);
	int ok = of && bpf_ringbuf_query(of, BPF_RB_AVAIL_DATA) < TAP_RING_PAGES * 2048ull &&
		 emit(skb, key, p, hash, (p->flags & 0xff) | TAP_FROM_SERVER, p->seq, p->payload, p->length, size,
		      room_for(size));
	count(shard, ok ? TAP_RESPONSES : TAP_RESPONSES_LOST, 1, p->length);
	return ok;
}

/* Whether production's payload on flows of this hash is copied. */
static inline int wants_responses(const struct tap_wants *w, u32 hash, u32 shard)
{
	const struct tap_window *of = &w->window[shard & (TAP_MAX_WORKERS - 1)];
	return (w->bucket[hash & 0xffff] & TAP_WANT_RESPONSES) || ((hash - of->first) & 0xffff) < of->count;
}

/* In the flags of a handshake: what of production the client may acknowledge beside its SYN.  Some where production accepted
 * the connection before, anything where there was no room to tell that it did. */
#define TAP_EARLY 0x1000
#define TAP_LOOSE 0x2000
/* And that the client's packet that completes it was captured: not of one that bears a tap's mark, on which production's
 * bear none. */
#define TAP_COMPLETE 0x4000
/* And that it has said something. */
#define TAP_SAID 0x8000
#define TAP_ANSWERED (TAP_ACCEPTED | TAP_MULTIPATH)
/* Furthest that a number can be from that of the handshake: the largest window. */
#define PLAUSIBLE (1u << 30)
/* What either side can send before it hears of the other: production its first congestion window, ten segments of
 * 64 KiB on `lo`, a client the window of the SYN-ACK.  No more, for a SYN with data proves nothing: production may never
 * have got it. */
#define EARLY (1u << 20)

#define MAX_OPTIONS 16
#define OPTION_MPTCP 30

/* TAP_MULTIPATH if the options have that of Multipath TCP (RFC 8684), else TAP_ACCEPTED. */
static inline u32 kind_of(struct __sk_buff *skb, const struct seen *p)
{
	u32 at = p->options;
	for (int i = 0; i < MAX_OPTIONS; i++) {
		u8 option[2];
		if (at + 2 > p->payload || bpf_skb_load_bytes(skb, at, option, 2) || !option[0])
			break;
		if (option[0] == OPTION_MPTCP)
			return TAP_MULTIPATH;
		at += option[0] == 1 ? 1 : option[1];
	}
	return TAP_ACCEPTED;
}

/* What tells a flow from others in the same place. */
static inline u64 name_of(const struct tap_key *key, u32 hash)
{
	const u32 *w = (const u32 *)key;
	return (u64)hash << 32 | (w[3] * 0x9E3779B1u ^ w[8]);
}

/* Which of them has this hash; WAYS: none. */
static inline u32 way_of(const struct place *place, u32 hash)
{
	u32 found = WAYS;
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < WAYS; i++)
		found -= none(place->way[i].hash ^ hash) * (WAYS - i);
	/* Or the compiler leaves out that from which the verifier learns the bound. */
	asm volatile("" : "+r"(found));
	return found & WAYS;
}

/* Remember a handshake that production answered, or a SYN with data. */
static inline void remember(struct place *place, u32 hash, const struct tap_first *new)
{
	u32 at = place->next < WAYS ? place->next : 0;
	place->way[at].hash = hash;
	place->way[at].first = *new;
	place->next = at + 1;
}

/* Wherever it is. */
static inline void drop(struct tap_key *key, struct tap_first *first)
{
	first->flags = 0;
	completed.delete(key);
}

/* Tell that a connection is accepted, once. */
static inline void accepted(const struct tap_key *key, struct tap_first *first, u32 hash)
{
	struct tap_key k = *key;
	struct seen begin = {.seq = first->client, .ack = first->server};
	if (emit_bare(key, &begin, hash, first->flags & TAP_ANSWERED, 0)) {
		drop(&k, first);
		count(shard_of(hash), TAP_ACCEPTED_COUNT, 1, 0);
	} else {
		first->flags |= TAP_LOOSE;
	}
}

/*
 * Whether the client completes a handshake that production answered, or did.  As in tcp_check_req() it must acknowledge
 * production's SYN and no more: who cannot see that, because he writes under another's address, has to guess it.
 */
static inline int completes(const struct seen *p, const struct tap_first *first)
{
	u32 within = first->flags & TAP_LOOSE ? PLAUSIBLE : first->flags & TAP_EARLY ? EARLY : 1;
	return (p->flags & ACK) && p->seq + EARLY - first->client < PLAUSIBLE && p->ack - first->server < within;
}

/*
 * What a packet tells of a handshake.  TAP_UNACCEPTED if it is of a connection of which is not known yet whether it was
 * accepted: a client's where the handshake is complete, or one of production's that says nothing.  Else 0.
 *
 * Production shows that it accepted a connection by what it sends behind its SYN-ACK.  Only then it acknowledges more than
 * the SYN, sends data or ends: for want of room in the accept queue, tcp_v4_syn_recv_sock() makes no connection of a
 * handshake that is complete.  At a mirror port that may be seen before the client's packet that completes it.
 *
 * Of a SYN with data (RFC 7413) what would acknowledge it all is remembered: production takes it only with a valid cookie,
 * and then accepts the connection at once.  A SYN without data that the same would acknowledge is another connection's.
 */
static inline u32 shake(struct __sk_buff *skb, const struct tap_key *key, const struct seen *p, u32 hash, u32 server)
{
	struct tap_key k = *key;
	u64 name = name_of(key, hash);
	u32 at = hash & (PLACES - 1);
	struct place *place = places.lookup(&at);
	if (!place || (place->settled == name && !(p->flags & SYN)))
		return 0;
	struct tap_first *first = completed.lookup(&k);
	u32 whole = first != 0, way = WAYS;
	if (!first) {
		way = way_of(place, hash);
		first = &place->way[way].first;
	}
	if (p->flags & SYN) {
		struct tap_first new = {};
		if (server && (p->flags & ACK)) {
			count(shard_of(hash), TAP_SYN_ACK, 1, 0);
			new.client = p->ack;
			new.server = p->seq + 1;
			new.flags = kind_of(skb, p);
			if (first->client == p->ack)
				new.flags |= first->flags & (TAP_EARLY | TAP_LOOSE | TAP_COMPLETE | TAP_SAID);
		} else if (!server && !(p->flags & (ACK | FIN | RST)) && !(first->flags & TAP_ANSWERED)) {
			new.client = p->seq + 1 + p->length;
			if (p->length)
				new.flags = TAP_EARLY;
			else if (first->client == new.client)
				first->flags = 0;
		}
		if (new.flags) {
			place->settled = 0;
			if (way < WAYS || new.flags & TAP_COMPLETE) {
				*first = new;
			} else {
				if (whole)
					completed.delete(&k);
				remember(place, hash, &new);
			}
		}
		/* The data of another SYN is none of this connection's. */
		return !server && first->flags & TAP_ANSWERED ? TAP_UNACCEPTED : 0;
	}
	if (!first->flags)
		place->settled = name;
	if (!(first->flags & TAP_ANSWERED))
		return 0;
	u32 taken = p->ack - first->client, sent = p->seq - first->server;
	if (!server) {
		if (!completes(p, first))
			return 0;
		u32 before = first->flags;
		first->flags |= p->length || (p->flags & FIN) ? TAP_COMPLETE | TAP_SAID : TAP_COMPLETE;
		if (!(before & TAP_EARLY)) {
			if ((p->flags & RST) && p->seq == first->client && !(before & TAP_SAID)) {
				drop(&k, first); /* as of a health check: it has said nothing, and will not */
			} else if (!(before & TAP_COMPLETE) && !completed.update(&k, first)) {
				first->flags = 0;
				place->way[way].hash = 0;
			}
			return TAP_UNACCEPTED;
		}
	} else if ((p->flags & RST) && (!(p->flags & ACK) || !taken || taken >= EARLY)) {
		/* What answers a packet that is of no connection bears no ACK; what ends one acknowledges all that came. */
		if (!sent)
			drop(&k, first);
		return 0;
	} else if (!(p->flags & ACK) || taken >= PLAUSIBLE || sent >= PLAUSIBLE) {
		return 0;
	} else if (!(first->flags & TAP_LOOSE) && (taken >= EARLY || sent >= EARLY)) {
		/* What would have shown it was not captured: a connection in mid-stream. */
		drop(&k, first);
		return 0;
	} else if (!taken && !p->length && !(p->flags & FIN)) {
		return TAP_UNACCEPTED;
	} else if (!(first->flags & TAP_COMPLETE)) {
		first->flags |= TAP_EARLY;
		return 0;
	}
	accepted(key, first, hash);
	return 0;
}

static inline u32 chunks(u32 length)
{
	return (length + TAP_CHUNK - 1) / TAP_CHUNK;
}

/* Of production's packet: its payload becomes a record where it is compared.  Whether it becomes one without payload. */
static inline int from_server(struct __sk_buff *skb, struct tap_config *c, const struct tap_key *key,
			      const struct seen *p, u32 hash, u32 shard)
{
	u32 zero = 0;
	struct tap_wants *w = wants.lookup(&zero);
	if (!w || (p->flags & SYN))
		return 0;
	u8 *once = &w->once[hash & 0xffff];
	if (c->response_bytes && p->length && !p->fragment) {
		/* Without its payload it still tells what was acknowledged, and that the connection ends. */
		if (wants_responses(w, hash, shard) && response(skb, c, key, p, hash)) {
			if (*once)
				*once = 0;
			return 0;
		}
	}
	if (!(p->flags & (FIN | RST)) && !(c->flags & TAP_EGRESS_ALL)) {
		if (!*once && !(w->bucket[hash & 0xffff] & TAP_WANT_ALL))
			return 0;
		if (*once)
			*once = 0;
	}
	count(shard, TAP_EGRESS, 1, p->length);
	return 1;
}

/* The payload of a client's packet; `flags` are those of its records. */
static inline void from_client(struct __sk_buff *skb, const struct tap_key *key, const struct seen *p, u32 hash,
			       u32 shard, u32 records, u32 flags)
{
	if (records == 1) {
		int ok = emit(skb, key, p, hash, flags, p->seq, p->payload, p->length, p->length, room_for(p->length));
		count(shard, ok ? TAP_EMITTED : TAP_RING_FULL, 1, p->length);
		return;
	}
	/* A super-packet of BIG TCP: the flags that end something go with its last part. */
	u32 done = 0;
	for (int i = 0; i < TAP_MAX_CHUNKS && done < p->length; i++) {
		u32 size = p->length - done;
		u32 part = done ? flags & (TAP_UNACCEPTED | 0xff) & ~(SYN | URG) : flags;
		if (size > TAP_CHUNK) {
			size = TAP_CHUNK;
			part &= ~(FIN | PSH);
		}
		int ok = emit(skb, key, p, hash, part, p->seq + done, p->payload + done, size, size, TAP_CHUNK);
		count(shard, ok ? TAP_EMITTED : TAP_RING_FULL, 1, size);
		done += size;
	}
}

/* A packet of a connection of production's, from either side. */
static inline int judge(struct __sk_buff *skb, struct tap_config *c, const struct tap_key *key, const struct seen *p,
			u32 server)
{
	u32 hash = flow_hash(key, c->seed), shard = shard_of(hash);
	u32 records = server ? 0 : chunks(p->length);
	if (records)
		count(shard, TAP_SEEN, records, p->length);
	/* A network may have taken the probe's mark off. */
	int is_probe = (p->flags & SYN) && c->probe && p->seq == c->probe;
	int marked = !server && (p->dscp == c->dscp || is_probe);
	u32 fate = TAP_EMITTED;
	if (marked)
		fate = TAP_LOOP;
	else if (!is_client(c, key->client))
		fate = TAP_CLIENT;
	else if ((u64)hash >= c->threshold)
		fate = TAP_SAMPLED_OUT;
	else if (!server && p->fragment)
		fate = TAP_FRAGMENT;
	if (!server && (p->flags & SYN) && (fate == TAP_EMITTED || marked))
		count(shard, marked ? TAP_LOOP_SYN : TAP_SYN, 1, 0);
	if (fate != TAP_EMITTED) {
		if (records)
			count(shard, fate, records, p->length);
		return 0;
	}
	u32 flags = p->flags | shake(skb, key, p, hash, server);
	u32 length = 0;
	if (server) {
		if ((flags & TAP_UNACCEPTED) || !from_server(skb, c, key, p, hash, shard))
			return 0;
		flags |= TAP_FROM_SERVER;
		length = p->length;
	} else if (records) {
		from_client(skb, key, p, hash, shard, records, flags);
		return 0;
	} else if (!(p->flags & (FIN | RST | URG))) {
		if (!(p->flags & SYN))
			count(shard, TAP_BARE_ACK, 1, 0);
		return 0;
	}
	emit_bare(key, p, hash, flags, length);
	return 0;
}

/* What holds for packets of this interface. */
static inline u32 flags_of(struct tap_config *c, u32 ifindex)
{
	u32 flags = c->flags;
	for (u32 i = 0; i < TAP_MAX_LINKS; i++) {
		if (i >= c->link_count)
			break;
		flags |= c->links[i].flags & (u32)-none(c->links[i].ifindex ^ ifindex);
	}
	return flags;
}

int tap(struct __sk_buff *skb)
{
	u32 zero = 0;
	struct tap_config *c = config.lookup(&zero);
	if (!c || (skb->pkt_type == OTHERHOST && !(c->flags & (TAP_PROMISC | TAP_EITHER_WAY))))
		return 0;
	u32 flags = flags_of(c, skb->ifindex);
	u32 outgoing = skb->pkt_type == OUTGOING;
	if (outgoing && (flags & TAP_LOOPBACK))
		return 0;
	struct tap_key key = {}, reverse = {};
	struct seen p = {};
	u16 type;
	u8 proto = 0;
	u32 end = 0, l4;
	u32 l3 = parse_link(skb, c, flags, &key.vlan, &type);
	if (flags & TAP_MANY)
		key.vlan = 0;
	if (type == 0x0800)
		l4 = parse_ip4(skb, l3, key.client, key.server, &p, &proto, &end);
	else if (type == 0x86dd)
		l4 = parse_ip6(skb, c, l3, key.client, key.server, &p, &proto, &end);
	else
		return 0;
	if (!l4 || proto != PROTO_TCP || p.later_fragment)
		return 0;
	if (!parse_tcp(skb, l4, end, &key.client_port, &key.server_port, &p))
		return 0;
	u32 server = 0;
	if ((!outgoing || (flags & TAP_EITHER_WAY)) && is_production(c, key.server, key.server_port)) {
		reverse = key;
	} else if ((outgoing || (flags & (TAP_LOOPBACK | TAP_PROMISC | TAP_EITHER_WAY))) &&
		   is_production(c, key.client, key.client_port)) {
		server = 1;
		__builtin_memcpy(reverse.client, key.server, 16);
		__builtin_memcpy(reverse.server, key.client, 16);
		reverse.client_port = key.server_port;
		reverse.server_port = key.client_port;
		reverse.vlan = key.vlan;
	} else {
		return 0;
	}
	return judge(skb, c, &reverse, &p, server);
}
