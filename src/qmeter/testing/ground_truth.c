/* Ground truth: streams tokens over HTTP/1.1 at exact times and logs when it received and when it wrote.
 *
 * One thread, one epoll, no sleep while a deadline is near. Token k of a request is due at
 *     received + ttft + k * per_event * itl
 * on CLOCK_MONOTONIC: absolute deadlines, so that one late write delays no other. "Received" is the kernel's software
 * receive stamp of the request's last segment (SO_TIMESTAMPING, brought to CLOCK_MONOTONIC), or the time after read()
 * where the socket gives none. "Wrote" is taken right before send(): over loopback the segment enters the receiver's
 * stack inside that call.
 *
 * Usage: ground_truth TTFT_NS ITL_NS PER_EVENT PORT   (port 0: any). Prints "port N". Ends when its stdin closes.
 * Routes: POST /v1/completions, /v1/chat/completions, /generate; GET /v1/models, /health, /qmeter/log; POST /qmeter/reset.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define STAMPING 37
#define SPIN_NS 2000000LL
#define MAX_TOKENS 1000000

typedef int64_t i64;

typedef struct {
    int fd, chat, stream, tokens, sent, keep_alive, busy, sglang;
    char *in, *out;
    size_t in_len, in_cap, out_len, out_at, out_cap;
    i64 request, deadline, received, arrived;
} Conn;

typedef struct { i64 id, received, read_at, first; int32_t tokens, written; } Request;

static Conn **conns; static int conns_cap;
static Conn **heap; static int heap_len, heap_cap;
static Request *requests; static i64 n_requests, cap_requests;
static i64 *writes; static i64 n_writes, cap_writes;
static i64 ttft_ns, itl_ns, blocked, clock_offset; static int per_event;
static int ep;

static void *grow(void *p, size_t bytes) {
    p = realloc(p, bytes);
    if (!p) { fputs("ground_truth: out of memory\n", stderr); exit(1); }
    return p;
}

static i64 mono(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000000LL + t.tv_nsec; }

static void anchor(void) {
    i64 best = INT64_MAX;
    for (int i = 0; i < 5; i++) {
        struct timespec r; i64 a = mono(); clock_gettime(CLOCK_REALTIME, &r); i64 b = mono();
        if (b - a < best) { best = b - a; clock_offset = r.tv_sec * 1000000000LL + r.tv_nsec - (a + b) / 2; }
    }
}

/* -- deadlines: a binary heap of connections that stream ---------------------------------------------------------- */

static void sift_down(int i) {
    Conn *c = heap[i];
    for (;;) {
        int k = 2 * i + 1;
        if (k >= heap_len) break;
        if (k + 1 < heap_len && heap[k + 1]->deadline < heap[k]->deadline) k++;
        if (heap[k]->deadline >= c->deadline) break;
        heap[i] = heap[k]; i = k;
    }
    heap[i] = c;
}

static void push(Conn *c) {
    if (heap_len == heap_cap) { heap_cap = heap_cap ? heap_cap * 2 : 1024; heap = grow(heap, heap_cap * sizeof *heap); }
    int i = heap_len++;
    while (i && heap[(i - 1) / 2]->deadline > c->deadline) { heap[i] = heap[(i - 1) / 2]; i = (i - 1) / 2; }
    heap[i] = c;
}

static void pop(void) { heap[0] = heap[--heap_len]; if (heap_len) sift_down(0); }

/* -- output ------------------------------------------------------------------------------------------------------- */

static void drop(Conn *c) {
    if (c->busy) {
        for (int i = 0; i < heap_len; i++)
            if (heap[i] == c) {
                heap[i] = heap[--heap_len];
                for (int k = heap_len / 2 - 1; k >= 0; k--) sift_down(k);
                break;
            }
    }
    conns[c->fd] = NULL;
    close(c->fd); free(c->in); free(c->out); free(c);
}

/* 0 when the connection is gone. */
static int put(Conn *c, const char *data, size_t n) {
    ssize_t k = 0;
    if (!c->out_len) {
        k = send(c->fd, data, n, MSG_NOSIGNAL);
        if (k < 0) { if (errno != EAGAIN) return 0; k = 0; }
        if ((size_t)k == n) return 1;
        blocked++;
        struct epoll_event e = { EPOLLIN | EPOLLOUT, { .fd = c->fd } };
        epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e);
    }
    size_t rest = n - k;
    if (c->out_len + rest > c->out_cap) { c->out_cap = (c->out_len + rest) * 2; c->out = grow(c->out, c->out_cap); }
    memcpy(c->out + c->out_len, data + k, rest);
    c->out_len += rest;
    return 1;
}

static int flush(Conn *c) {
    while (c->out_at < c->out_len) {
        ssize_t k = send(c->fd, c->out + c->out_at, c->out_len - c->out_at, MSG_NOSIGNAL);
        if (k < 0) return errno == EAGAIN;
        c->out_at += k;
    }
    c->out_at = c->out_len = 0;
    struct epoll_event e = { EPOLLIN, { .fd = c->fd } };
    epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e);
    return 1;
}

static int answer(Conn *c, const char *status, const char *type, const char *body, size_t n) {
    char head[256];
    int k = snprintf(head, sizeof head, "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n", status, type, n);
    return put(c, head, k) && put(c, body, n);
}

static int chunk(char *to, size_t room, const char *data, int n) {
    return snprintf(to, room, "%x\r\n%.*s\r\n", n, n, data);
}

static int event(char *to, size_t room, Conn *c, int count, int last) {
    char text[4096], data[8192];
    int t = 0;
    if (c->sglang) {
        for (int i = 0; i < c->sent + count && t < 4000; i++) t += snprintf(text + t, sizeof text - t, " hello");
        int n = snprintf(data, sizeof data,
            "data: {\"text\":\"%s\",\"output_ids\":[7],\"meta_info\":{\"id\":\"gt\",\"finish_reason\":%s,\"prompt_tokens\":8,"
            "\"completion_tokens\":%d,\"cached_tokens\":0}}\n\n",
            text, last ? "{\"type\":\"length\",\"length\":0}" : "null", c->sent + count);
        return chunk(to, room, data, n);
    }
    for (int i = 0; i < count && t < 4000; i++) t += snprintf(text + t, sizeof text - t, " hello");
    const char *reason = last ? "\"length\"" : "null";
    int n;
    if (c->chat)
        n = snprintf(data, sizeof data,
            "data: {\"id\":\"chatcmpl-gt\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"truth\","
            "\"choices\":[{\"index\":0,\"delta\":{%s\"content\":\"%s\"},\"logprobs\":null,\"finish_reason\":%s}]}\n\n",
            c->sent ? "" : "\"role\":\"assistant\",", text, reason);
    else
        n = snprintf(data, sizeof data,
            "data: {\"id\":\"cmpl-gt\",\"object\":\"text_completion\",\"created\":1700000000,\"model\":\"truth\","
            "\"choices\":[{\"index\":0,\"text\":\"%s\",\"logprobs\":null,\"finish_reason\":%s}]}\n\n", text, reason);
    return chunk(to, room, data, n);
}

static const char HEAD[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
                           "Transfer-Encoding: chunked\r\n\r\n";
static const char DONE[] = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";

static char plain_event[2][512]; static int plain_len[2]; /* the usual event, [1] with the finish reason */

static int end_of_stream(Conn *c) {
    char data[512], out[1024];
    int n = 0;
    if (!c->sglang) {
        int d = snprintf(data, sizeof data,
            "data: {\"id\":\"gt\",\"object\":\"%s\",\"created\":1700000000,\"model\":\"truth\",\"choices\":[],\"usage\":"
            "{\"prompt_tokens\":8,\"completion_tokens\":%d,\"total_tokens\":%d}}\n\n",
            c->chat ? "chat.completion.chunk" : "text_completion", c->tokens, c->tokens + 8);
        n = chunk(out, sizeof out, data, d);
    }
    memcpy(out + n, DONE, sizeof DONE - 1);
    return put(c, out, n + sizeof DONE - 1);
}

static int whole(Conn *c) {
    char text[65536], body[70000];
    int t = 0;
    for (int i = 0; i < c->tokens && t < 60000; i++) t += snprintf(text + t, sizeof text - t, " hello");
    text[t] = 0;
    int n = snprintf(body, sizeof body,
        "{\"id\":\"gt\",\"object\":\"%s\",\"created\":1700000000,\"model\":\"truth\",\"text\":\"%s\",\"choices\":[{\"index\":0,"
        "%s\"%s\"%s,\"finish_reason\":\"length\"}],\"meta_info\":{\"completion_tokens\":%d,\"prompt_tokens\":8},\"usage\":"
        "{\"prompt_tokens\":8,\"completion_tokens\":%d,\"total_tokens\":%d}}",
        c->chat ? "chat.completion" : "text_completion", c->sglang ? text : "",
        c->chat ? "\"message\":{\"role\":\"assistant\",\"content\":" : "\"text\":", text, c->chat ? "}" : "",
        c->tokens, c->tokens, c->tokens + 8);
    return answer(c, "200 OK", "application/json", body, n);
}

static int parse(Conn *c);

/* Write what is due on the connection at the heap's top; reschedule or finish it. */
static void emit(void) {
    Conn *c = heap[0];
    Request *r = &requests[c->request];
    int ok, count = c->tokens - c->sent < per_event ? c->tokens - c->sent : per_event, last = c->sent + count >= c->tokens;
    char buffer[16384];
    int n = 0;
    if (!c->stream) {
        writes[r->first + r->written++] = mono();
        ok = whole(c);
        last = 1;
    } else {
        if (!c->sent) { memcpy(buffer, HEAD, sizeof HEAD - 1); n = sizeof HEAD - 1; }
        if (per_event == 1 && !c->chat && !c->sglang) {
            memcpy(buffer + n, plain_event[last], plain_len[last]); n += plain_len[last];
        } else n += event(buffer + n, sizeof buffer - n, c, count, last);
        writes[r->first + r->written++] = mono();
        ok = put(c, buffer, n);
        c->sent += count;
        if (ok && last) ok = end_of_stream(c);
    }
    if (!ok) { drop(c); return; }
    if (!last) { c->deadline += per_event * itl_ns; sift_down(0); return; }
    pop();
    c->busy = 0;
    if (!c->keep_alive) { shutdown(c->fd, SHUT_WR); return; }
    if (c->in_len && !parse(c)) drop(c);
}

/* -- input -------------------------------------------------------------------------------------------------------- */

static const char *find(const char *from, const char *to, const char *what) {
    return memmem(from, to - from, what, strlen(what));
}

static const char *header(const char *head, const char *end, const char *name) {
    size_t k = strlen(name);
    for (const char *p = head; p && p < end; ) {
        p = find(p, end, "\r\n");
        if (!p) return NULL;
        p += 2;
        if ((size_t)(end - p) > k && !strncasecmp(p, name, k)) { p += k; while (*p == ' ') p++; return p; }
    }
    return NULL;
}

static long field(const char *body, const char *end, const char *name, long otherwise) {
    const char *p = find(body, end, name);
    if (!p) return otherwise;
    for (p += strlen(name); p < end && (*p == '"' || *p == ':' || *p == ' '); p++) ;
    return p < end && *p >= '0' && *p <= '9' ? strtol(p, NULL, 10) : otherwise;
}

static int send_log(Conn *c) {
    size_t n = 48 + n_requests * sizeof(Request) + n_writes * 8;
    char *out = grow(NULL, n);
    i64 head[6] = { 0x3154474d51LL, n_requests, n_writes, ttft_ns, itl_ns * per_event, blocked };
    memcpy(out, head, 48);
    memcpy(out + 48, requests, n_requests * sizeof(Request));
    memcpy(out + 48 + n_requests * sizeof(Request), writes, n_writes * 8);
    int ok = answer(c, "200 OK", "application/octet-stream", out, n);
    free(out);
    return ok;
}

static int begin(Conn *c, const char *head, const char *body, const char *end) {
    long tokens = field(body, end, "\"max_tokens\"", -1);
    if (tokens < 0) tokens = field(body, end, "\"max_completion_tokens\"", -1);
    if (tokens < 0) tokens = field(body, end, "\"max_new_tokens\"", 64);
    if (tokens < 1 || tokens > MAX_TOKENS) return answer(c, "400 Bad Request", "application/json", "{}", 2);
    const char *s = find(body, end, "\"stream\"");
    c->stream = 0;
    if (s) { for (s += 8; s < end && (*s == ':' || *s == ' '); s++) ; c->stream = s < end && *s == 't'; }
    const char *id = header(head, body, "x-request-id:");
    if (n_requests == cap_requests) {
        cap_requests = cap_requests ? cap_requests * 2 : 65536;
        requests = grow(requests, cap_requests * sizeof *requests);
    }
    int events = c->stream ? (tokens + per_event - 1) / per_event : 1;
    while (n_writes + events > cap_writes) { cap_writes = cap_writes ? cap_writes * 2 : 1 << 22; writes = grow(writes, cap_writes * 8); }
    i64 number = id && !strncmp(id, "qmeter-", 7) ? strtoll(id + 7, NULL, 10) : -1;
    requests[n_requests] = (Request){ number, c->received, c->arrived, n_writes, events, 0 };
    for (int i = 0; i < events; i++) writes[n_writes + i] = -1;
    n_writes += events;
    c->request = n_requests++;
    c->tokens = tokens; c->sent = 0; c->busy = 1;
    c->deadline = c->received + ttft_ns + (c->stream ? 0 : (tokens - 1) * itl_ns);
    push(c);
    return 1;
}

/* Take one whole request from the buffer, if it is there. 0: close the connection. */
static int parse(Conn *c) {
    const char *end = c->in + c->in_len, *stop = find(c->in, end, "\r\n\r\n");
    if (!stop) return c->in_len < 65536;
    const char *body = stop + 4, *length = header(c->in, body, "content-length:");
    size_t need = body - c->in + (length ? strtoul(length, NULL, 10) : 0);
    if (c->in_len < need) return 1;
    const char *connection = header(c->in, body, "connection:");
    c->keep_alive = !(connection && !strncasecmp(connection, "close", 5));
    end = c->in + need;
    int ok;
    const char *path = memchr(c->in, ' ', need);
    path = path ? path + 1 : c->in;
    c->chat = !strncmp(path, "/v1/chat/completions", 20);
    c->sglang = !strncmp(path, "/generate ", 10);
    static const char MODELS[] = "{\"object\":\"list\",\"data\":[{\"id\":\"truth\",\"object\":\"model\",\"created\":1700000000,"
                                 "\"owned_by\":\"qmeter\",\"root\":\"truth\",\"max_model_len\":131072}]}";
    if (c->in[0] == 'P' && (c->chat || c->sglang || !strncmp(path, "/v1/completions", 15))) ok = begin(c, c->in, body, end);
    else if (!strncmp(path, "/v1/models", 10)) ok = answer(c, "200 OK", "application/json", MODELS, sizeof MODELS - 1);
    else if (!strncmp(path, "/qmeter/log", 11)) ok = send_log(c);
    else if (!strncmp(path, "/qmeter/reset", 13)) {
        int busy = heap_len > 0;
        if (!busy) n_requests = n_writes = blocked = 0;
        ok = answer(c, busy ? "409 Conflict" : "200 OK", "text/plain", "", 0);
    } else if (!strncmp(path, "/health", 7) || !strncmp(path, "/metrics", 8)) ok = answer(c, "200 OK", "text/plain", "", 0);
    else ok = answer(c, "404 Not Found", "application/json", "{}", 2);
    memmove(c->in, c->in + need, c->in_len - need);
    c->in_len -= need;
    return ok;
}

/* 0: the connection is gone. */
static int take(Conn *c) {
    if (c->in_cap - c->in_len < 16384) { c->in_cap = c->in_cap ? c->in_cap * 2 : 16384 * 2; c->in = grow(c->in, c->in_cap); }
    char control[128];
    struct iovec io = { c->in + c->in_len, c->in_cap - c->in_len - 1 };
    struct msghdr m = { .msg_iov = &io, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
    ssize_t k = recvmsg(c->fd, &m, 0);
    if (k < 0) return errno == EAGAIN;
    if (!k) return 0;
    i64 now = mono(), stamp = now;
    for (struct cmsghdr *h = CMSG_FIRSTHDR(&m); h; h = CMSG_NXTHDR(&m, h))
        if (h->cmsg_level == SOL_SOCKET && h->cmsg_type == STAMPING) {
            struct timespec t; memcpy(&t, CMSG_DATA(h), sizeof t);
            i64 kernel = t.tv_sec * 1000000000LL + t.tv_nsec - clock_offset;
            if (t.tv_sec && kernel <= now && kernel > now - 10000000000LL) stamp = kernel;
        }
    c->received = stamp; c->arrived = now;
    c->in_len += k;
    c->in[c->in_len] = 0;
    return c->busy ? 1 : parse(c);
}

static void accept_all(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        int one = 1, flags = (1 << 3) | (1 << 4);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(fd, SOL_SOCKET, STAMPING, &flags, sizeof flags);
        if (fd >= conns_cap) {
            int cap = fd * 2 + 1024;
            conns = grow(conns, cap * sizeof *conns);
            memset(conns + conns_cap, 0, (cap - conns_cap) * sizeof *conns);
            conns_cap = cap;
        }
        Conn *c = calloc(1, sizeof *c);
        if (!c) { close(fd); return; }
        c->fd = fd;
        conns[fd] = c;
        struct epoll_event e = { EPOLLIN, { .fd = fd } };
        epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
    }
}

int main(int argc, char **argv) {
    if (argc != 5) { fputs("usage: ground_truth TTFT_NS ITL_NS PER_EVENT PORT\n", stderr); return 2; }
    ttft_ns = atoll(argv[1]); itl_ns = atoll(argv[2]); per_event = atoi(argv[3]);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_TIMERSLACK, 1);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    struct rlimit files;
    if (!getrlimit(RLIMIT_NOFILE, &files)) { files.rlim_cur = files.rlim_max; setrlimit(RLIMIT_NOFILE, &files); }
    Conn shape = { 0 };
    plain_len[0] = event(plain_event[0], sizeof plain_event[0], &shape, 1, 0);
    plain_len[1] = event(plain_event[1], sizeof plain_event[1], &shape, 1, 1);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[4])), .sin_addr = { htonl(INADDR_LOOPBACK) } };
    socklen_t size = sizeof at;
    if (bind(listener, (struct sockaddr *)&at, size) || listen(listener, 4096)) { perror("ground_truth: listen"); return 1; }
    getsockname(listener, (struct sockaddr *)&at, &size);
    ep = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event e = { EPOLLIN, { .fd = listener } }, events[128];
    epoll_ctl(ep, EPOLL_CTL_ADD, listener, &e);
    e.data.fd = 0;
    epoll_ctl(ep, EPOLL_CTL_ADD, 0, &e);
    printf("port %d\n", ntohs(at.sin_port));
    fflush(stdout);
    i64 anchor_at = 0;
    for (;;) {
        i64 now = mono();
        if (now >= anchor_at) { anchor(); anchor_at = now + 100000000LL; }
        for (int k = 0; k < 16 && heap_len && heap[0]->deadline <= mono(); k++) emit();
        i64 gap = heap_len ? heap[0]->deadline - mono() : 100000000LL;
        int n = epoll_wait(ep, events, 128, gap > SPIN_NS ? (int)((gap - SPIN_NS) / 1000000) : 0);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) { accept_all(listener); continue; }
            if (fd == 0) { char c; if (read(0, &c, 1) <= 0) return 0; continue; }
            Conn *c = fd < conns_cap ? conns[fd] : NULL;
            if (!c) continue;
            if (events[i].events & EPOLLOUT && !flush(c)) { drop(c); continue; }
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR) && !take(c)) drop(c);
            if (heap_len && heap[0]->deadline <= mono()) emit();
        }
    }
}
