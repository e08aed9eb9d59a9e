//! Everything that can be set.

/// One thing that can be set.
#[derive(Debug)]
pub struct Variable {
    /// Its name in the environment; the flag is the same without `NGIT_`, in kebab case.
    pub name: &'static str,
    /// What it is when nobody sets it; `None`: unset.
    pub default: Option<&'static str>,
    /// What it means, for the reference.
    pub meaning: &'static str,
    /// Must never be printed.
    pub secret: bool,
    /// It is on or off, and its flag alone says on.
    pub switch: bool,
}

const fn variable(
    name: &'static str,
    default: Option<&'static str>,
    meaning: &'static str,
) -> Variable {
    Variable {
        name,
        default,
        meaning,
        secret: false,
        switch: false,
    }
}

const fn switch(
    name: &'static str,
    default: Option<&'static str>,
    meaning: &'static str,
) -> Variable {
    Variable {
        switch: true,
        ..variable(name, default, meaning)
    }
}

const fn secret(name: &'static str, meaning: &'static str) -> Variable {
    Variable {
        secret: true,
        ..variable(name, None, meaning)
    }
}

/// Everything that can be set.
#[rustfmt::skip]
pub static VARIABLES: &[Variable] = &[
    variable("NGIT_DOMAIN", None, "Public `host[:port]` of the service. Required, except that with a listener on loopback `localhost:<port>` is assumed."),
    variable("NGIT_BIND_ADDRESS", Some("127.0.0.1:7334"), "The public listener."),
    variable("NGIT_GIT_DATA_PATH", Some("./data/git"), "Where repositories lie, as `<npub>/<identifier>.git`."),
    variable("NGIT_RELAY_DATA_PATH", Some("./data/relay"), "Where events and the purgatory journal lie."),
    variable("NGIT_RUN_DIR", None, "Where sockets of a service whose processes all start together lie, and the note by which `graspd status` and the other commands find it; at most 90 bytes. A directory under `$XDG_RUNTIME_DIR` or `/tmp`, made for the run, when unset."),
    variable("NGIT_MIN_FREE_BYTES", Some("536870912"), "Free space on the disks of `NGIT_GIT_DATA_PATH` and `NGIT_RELAY_DATA_PATH` below which nothing new is taken, in bytes: pushes, events and what is found elsewhere are refused until there is room again, everything here is served on. 0: the disk may fill up."),
    switch("NGIT_ACCEPT_DOMAIN_CHANGE", Some("false"), "For one start after `NGIT_DOMAIN` was changed: the data of the old name becomes the new one's. Without it such a start is refused."),
    switch("NGIT_ACCEPT_MISSING_EVENTS", Some("false"), "For one start: begin with an empty event store although there is a journal, or there are repositories of this service. Without it such a start is refused, as the disk of `NGIT_RELAY_DATA_PATH` may not be there."),
    variable("NGIT_DATABASE_BACKEND", Some("lmdb"), "`lmdb`, or `memory`: events and purgatory in memory only; repositories still in `NGIT_GIT_DATA_PATH`, in a temporary directory only where that is unset."),
    variable("NGIT_RELAY_NAME", None, "NIP-11 name; made from the domain when unset."),
    variable("NGIT_RELAY_DESCRIPTION", None, "NIP-11 description; made from the domain when unset."),
    secret("NGIT_RELAY_OWNER_NSEC", "Identity of the service (nsec or hex). When unset: the credential `relay_owner_nsec` of systemd, the file `.relay-owner.nsec` in the working directory, else that in the relay data path, made there at first start."),
    variable("NGIT_RELAY_OWNER_NSEC_FILE", None, "File to read `NGIT_RELAY_OWNER_NSEC` from."),
    variable("NGIT_OWNER_NPUB", None, "Of older deployments; ignored."),
    variable("NGIT_OPERATOR_PUBKEY", None, "The operator's key (npub or hex), told in NIP-11 as `pubkey`; the service's own when unset."),
    variable("NGIT_RELAY_CONTACT", None, "How else the operator is reached, told in NIP-11: a URI, or a mail address."),
    variable("NGIT_RELAY_ICON", None, "Address of a square picture of the service, told in NIP-11; graspd's own when unset."),
    variable("NGIT_RELAY_BANNER", None, "Address of a wide picture of the service, told in NIP-11."),
    variable("NGIT_RELAY_TERMS_OF_SERVICE", None, "Address of the terms that users agree to, told in NIP-11."),
    switch("NGIT_PRIVATE_MODE", Some("false"), "Must not be on: graspd has no private mode (GRASP-08) and would serve everybody, so that the start is refused."),
    variable("NGIT_BASE_PATH", Some("/"), "Must be `/`: graspd is served at the root of its domain only."),
    variable("NGIT_TRUSTED_PROXY_CIDRS", Some(""), "Comma-separated networks of peers whose `Forwarded` and `X-Forwarded-For` are believed."),
    variable("NGIT_MAX_CONNECTIONS", None, "Most websocket connections at once; unlimited when unset or 0."),
    variable("NGIT_RELAY_MAX_SUBSCRIPTIONS", Some("500"), "Most subscriptions of one connection."),
    variable("NGIT_RELAY_FILTER_LIMIT", Some("500"), "Most stored events one filter is answered with."),
    variable("NGIT_RELAY_MAX_EVENT_SIZE_BYTES", Some("196608"), "Largest event accepted, in bytes."),
    variable("NGIT_RELAY_MAX_STATE_SIZE_BYTES", Some("4194304"), "Largest repository state (kind 30618) accepted, in bytes: it names every ref. The longest message that a websocket takes is a quarter longer."),
    variable("NGIT_RELAY_CREATED_AT_UPPER_LIMIT_SECS", Some("900"), "How far an event's `created_at` may be ahead of now, in seconds."),
    variable("NGIT_RELAY_EVENTS_PER_MINUTE", Some("60"), "Most events one connection may send in a minute; 0: no limit."),
    variable("NGIT_MAX_CONNECTIONS_PER_IP", Some("100"), "Most connections from one address at once, and most websockets of one client; 0: no limit. For this and the other limits of an address, a /64 of IPv6 is one, and it is the client's that counts, also behind `NGIT_TRUSTED_PROXY_CIDRS`."),
    variable("NGIT_RELAY_EVENTS_PER_MINUTE_PER_IP", Some("600"), "Most events all connections of one address may send in a minute; 0: no limit."),
    variable("NGIT_GIT_REQUESTS_PER_MINUTE_PER_IP", Some("600"), "Most git requests and pages one address may ask for in a minute, of which a clone takes three; 0: no limit."),
    variable("NGIT_GIT_TRANSFERS_PER_IP", Some("32"), "Most clones, fetches and pushes of one address at once; 0: no limit."),
    variable("NGIT_GIT_BYTES_PER_HOUR_PER_IP", Some("107374182400"), "Most bytes one address may clone, fetch and push in an hour; 0: no limit. What runs is not cut off for it: it is what comes next that is refused."),
    variable("NGIT_UNLIMITED_CIDRS", Some("127.0.0.0/8,::1,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,169.254.0.0/16,fc00::/7,fe80::/10"), "Networks whose addresses have none of these limits, or `none`; those of one's own, unless set."),
    switch("NGIT_METRICS_ENABLED", Some("true"), "Whether `/metrics` answers at the public listener, or at `NGIT_METRICS_ADDRESS`."),
    variable("NGIT_METRICS_ADDRESS", None, "Where the `/metrics` of the whole service is answered instead of at the public listener, with `/healthz` and `/readyz`: `http://host:port` or `unix:/path`. In a private network."),
    variable("NGIT_RELAY_METRICS_ADDRESS", None, "Where the relay answers `/metrics`, of its own process, `/healthz` and `/readyz` to monitoring: `http://host:port` or `unix:/path`. In a private network; nowhere when unset."),
    variable("NGIT_GITD_METRICS_ADDRESS", None, "The same for gitd."),
    variable("NGIT_WORKER_METRICS_ADDRESS", None, "The same for a syncworker that is started apart, or is the only one."),
    variable("NGIT_METRICS_TOP_N_REPOS", Some("10"), "How many repositories the public `/metrics` names one by one: those that move the most bytes, in `ngit_repo_bytes_total{repo}`. At most 1000; 0: none."),
    variable("NGIT_METRICS_CONNECTION_PER_IP_ABUSE_THRESHOLD", Some("10"), "Connections from one address from which on it counts as suspicious in `/metrics`."),
    variable("NGIT_LOG_LEVEL", Some("info"), "Log filter: a level (`trace`, `debug`, `info`, `warn`, `error`, `off`, of any case), or directives like `debug,hyper=warn`; `RUST_LOG` is read too."),
    variable("NGIT_LOG_FORMAT", Some("text"), "`text` or `json`."),
    variable("OTEL_EXPORTER_OTLP_ENDPOINT", None, "Collector that traces are sent to, OTLP over gRPC: `http://host:4317`. No traces when unset."),
    variable("OTEL_SERVICE_NAME", None, "What the process is called in traces; `graspd-relay`, `graspd-gitd` or `graspd-syncworker` when unset."),
    variable("OTEL_TRACES_SAMPLER", Some("parentbased_always_on"), "Which traces are sent: `always_on`, `always_off` or `traceidratio`, or one of them behind `parentbased_`, which keeps a trace whole."),
    variable("OTEL_TRACES_SAMPLER_ARG", Some("1"), "The share of traces that `traceidratio` sends, from 0 to 1."),
    switch("NGIT_TEST", None, "`1`: a quick clock for tests, and workers may connect to loopback. Said loudly in the log."),
    variable("NGIT_RELAY_GRPC_ADDRESS", None, "Where the relay's internal services listen and are found: `http://host:port` or `unix:/path`. A socket in the run directory when unset."),
    variable("NGIT_GITD_GRPC_ADDRESS", None, "Where gitd's internal services listen and are found. As above."),
    variable("NGIT_GITD_HTTP_ADDRESS", None, "Where gitd's smart HTTP listens and is found. As above."),
    secret("NGIT_INTERNAL_TOKEN_RELAY", "Credential of the relay on internal calls. The three are made for the run when all processes start together."),
    variable("NGIT_INTERNAL_TOKEN_RELAY_FILE", None, "File to read it from."),
    secret("NGIT_INTERNAL_TOKEN_GITD", "Credential of gitd on internal calls."),
    variable("NGIT_INTERNAL_TOKEN_GITD_FILE", None, "File to read it from."),
    secret("NGIT_INTERNAL_TOKEN_WORKER", "Credential of syncworkers on internal calls."),
    variable("NGIT_INTERNAL_TOKEN_WORKER_FILE", None, "File to read it from."),
    variable("NGIT_SHUTDOWN_GRACE_SECS", Some("30"), "How long transfers may go on after SIGTERM, in seconds."),
    variable("NGIT_GIT_MAX_PACK_BYTES", Some("17179869184"), "Largest pack taken in that a signed event wants, in bytes."),
    variable("NGIT_GIT_MAX_STAGED_PACK_BYTES", Some("1073741824"), "Most bytes of packs that nobody has signed for yet, in one repository."),
    variable("NGIT_GIT_MAX_PACK_OBJECTS", Some("4000000"), "Most objects of one pack that is taken in."),
    variable("NGIT_GIT_MAX_FILE_BYTES", Some("2147483648"), "Largest file (blob) taken in, in bytes."),
    variable("NGIT_GIT_MAX_METADATA_BYTES", Some("8388608"), "Largest commit, tree or tag taken in, in bytes. Git holds each in memory as a whole."),
    variable("NGIT_GIT_MAX_DELTA_BYTES", Some("33554432"), "Largest object that may come as a delta, in bytes. Git holds it and its base in memory; clients make no deltas of files above their `core.bigFileThreshold`."),
    variable("NGIT_GIT_MAX_INFLATED_BYTES", Some("2147483648"), "How much the objects of a small pack may be together once they are unpacked, in bytes."),
    variable("NGIT_GIT_MAX_INFLATED_RATIO", Some("128"), "How many bytes more they may be for each byte of the pack."),
    variable("NGIT_GIT_UNREACHABLE_RETENTION_SECS", Some("604800"), "How long git objects that no ref leads to any more are kept, for a signed state that may want them back, in seconds; what the ref of a pull request led to as long as `NGIT_ARCHIVE_RETENTION_SECS`, if that is longer. Within the hour after that they leave the disk. `graspd purge` does it at once."),
    variable("NGIT_GIT_PROCESS_MEMORY_BYTES", Some("4294967296"), "Most address space of one git process, in bytes."),
    variable("NGIT_GIT_PROCESS_CPU_SECS", Some("3600"), "Most time of a processor that one git process may take, in seconds."),
    variable("NGIT_UNSIGNED_MAX_BYTES", Some("10737418240"), "Most bytes of packs that nobody has signed for yet, in all repositories together. Each upload that waits for its event counts 64 KiB at least."),
    variable("NGIT_UNSIGNED_MAX_BYTES_PER_IP", Some("1073741824"), "Most such bytes that one client address has uploaded; of IPv6, one /64. Behind a proxy, set `NGIT_TRUSTED_PROXY_CIDRS`."),
    variable("NGIT_WORKERS", Some("1"), "How many syncworkers are started with the service. 0: none; others may be started apart."),
    variable("NGIT_SYNC_WORKER_CONCURRENCY", Some("8"), "Identifiers that one worker hunts for at once; as many more may be those whose fetch takes longer than a minute."),
    variable("NGIT_SYNC_LOOP_INTERVAL_MS", Some("1000"), "How often the hunt queue is looked at besides when something changes, in milliseconds."),
    variable("NGIT_SYNC_DEFAULT_DELAY_SECS", Some("180"), "How long after a user's event its git data is hunted for: a push is expected first. Seconds."),
    variable("NGIT_SYNC_IMMEDIATE_DELAY_MS", Some("500"), "How long after an event that was found elsewhere its git data is hunted for: bursts become one. Milliseconds."),
    variable("NGIT_SYNC_MAX_CONCURRENT_PER_DOMAIN", Some("5"), "Most requests to one remote domain at once, of all workers together."),
    variable("NGIT_SYNC_MAX_PER_MINUTE_PER_DOMAIN", Some("30"), "Most requests to one remote domain in any minute, of all workers together."),
    variable("NGIT_SYNC_MAX_PACK_BYTES", Some("17179869184"), "Largest pack taken from another server, in bytes."),
    switch("NGIT_SYNC_ALLOW_NON_GLOBAL_TARGETS", Some("false"), "Whether workers may connect to addresses that are not on the public internet."),
    variable("NGIT_NAUGHTY_LIST_EXPIRATION_HOURS", Some("12"), "The longest that a server that keeps failing is set aside, in hours: five minutes at first, and twice as long each time that the one request which then probes it fails. 0: never."),
    variable("NGIT_PURGATORY_KEPT_ALIVE_HOURS", Some("72"), "How long an event may be kept in purgatory beyond its half hour because its git data could not be looked for, in hours: too many wait for one domain, a fetch runs, a server is not there. 0: not at all."),
    variable("NGIT_PURGATORY_KEPT_ALIVE_PER_AUTHOR", Some("20000"), "Most events of one author that are kept so."),
    variable("NGIT_PURGATORY_KEPT_ALIVE_PER_DOMAIN", Some("20000"), "Most events that are kept so for one domain's sake."),
    variable("NGIT_PURGATORY_MAX_BYTES", Some("268435456"), "Most memory that all events in purgatory may take, in bytes. When it is full, what would have to wait is refused."),
    variable("NGIT_PURGATORY_MAX_BYTES_PER_AUTHOR", Some("67108864"), "Most of it that the events of one author may take, in bytes."),
    variable("NGIT_STRANGERS_MAX_BYTES", Some("33554432"), "Most bytes of events that may be stored of authors who have nothing else here: deletion requests, requests to vanish and grasp lists, which anybody may store. Each counts 512 bytes at least, for 30 days; then lists and requests to vanish go, and deletion requests age as all do. More is refused."),
    variable("NGIT_STRANGERS_MAX_BYTES_PER_AUTHOR", Some("131072"), "Most of them of one author, in bytes."),
    variable("NGIT_STRANGERS_MAX_BYTES_PER_IP", Some("1048576"), "Most of them that one client address may send in a day, in bytes; 0: no limit."),
    variable("NGIT_SYNC_BOOTSTRAP_RELAY_URL", None, "First relay to sync events from, before any repository names one. Without a scheme it is `wss://`."),
    variable("NGIT_SYNC_BASE_BACKOFF_SECS", Some("5"), "How long after a failure another relay is connected to again, in seconds; twice as long after each further one."),
    variable("NGIT_SYNC_MAX_BACKOFF_SECS", Some("3600"), "The longest such wait, in seconds. One that has failed for a day is tried once a day."),
    variable("NGIT_SYNC_DISCONNECT_CHECK_INTERVAL_SECS", Some("60"), "How often it is looked for other relays that no repository names any more, in seconds."),
    variable("NGIT_SYNC_STARTUP_DELAY_SECS", Some("30"), "How long after its start a worker first connects to other relays, in seconds. 0: at once, and the service opens once the first relay has been tried."),
    variable("NGIT_SYNC_STARTUP_JITTER_MS", Some("1000"), "Up to how much later than the first each other relay is connected to, in milliseconds."),
    variable("NGIT_SYNC_BATCH_WINDOW_MS", Some("5000"), "For how long new repositories and events are gathered before they are synced with other relays, in milliseconds."),
    switch("NGIT_SYNC_DISABLE_NEGENTROPY", Some("false"), "Whether the past of other relays is only read page by page, without NIP-77."),
    variable("NGIT_REJECTED_HOT_CACHE_DURATION_SECS", Some("120"), "How long an event that was found elsewhere and rejected for want of something is kept whole, in seconds: it is judged again when that comes."),
    variable("NGIT_REJECTED_COLD_INDEX_EXPIRY_SECS", Some("604800"), "How long an event that was found elsewhere and rejected is not fetched again, in seconds, unless what it wanted comes."),
    variable("NGIT_REPOSITORY_WHITELIST", None, "The only repositories that are hosted: `<npub>`, `<npub>/<identifier>` or `<identifier>`, separated by commas. What is hosted already stays. This and the other lists may also name a file, as `/path`, `./path` or `@path`: one entry a line, `#` begins a comment; it is read again on SIGHUP."),
    variable("NGIT_REPOSITORY_BLACKLIST", None, "Repositories that are not taken, in the same forms. Those that are here are neither served nor deleted as long as they are on it."),
    variable("NGIT_EVENT_BLACKLIST", None, "Authors of whom no event is taken, as npub or hex. Theirs that are here, their repositories and the refs of their pull requests among them, are neither served nor deleted as long as they are on it, nor is what others wrote to them and to nothing else that is served."),
    switch("NGIT_ARCHIVE_ALL", Some("false"), "Whether repositories are archived that do not list this service (GRASP-05): all of them."),
    variable("NGIT_ARCHIVE_WHITELIST", None, "Or these alone, in the forms of `NGIT_REPOSITORY_WHITELIST`,"),
    variable("NGIT_ARCHIVE_GRASP_SERVICES", None, "and those that name one of these services in `clone`: domains, separated by commas."),
    switch("NGIT_ARCHIVE_READ_ONLY", None, "Whether pushes to what is archived are refused, so that its data comes from the servers it lists alone. They are unless this is `false`. What lists this service can be pushed to all the same."),
    variable("NGIT_ARCHIVE_RETENTION_SECS", Some("7776000"), "How long what went with a deleted announcement, events and git data, is held for its owner to announce again, in seconds."),
    variable("NGIT_MAINTAINER_RULE", Some("confirmed"), "Whose states count for a repository. `confirmed`: the owner's, and those of maintainers who were named and name a maintainer back in an announcement of their own. `listed`: those of everybody named, recursively, whether they agree or not, as earlier versions had it: for services whose clients never answer an invitation. Changing it moves no refs back."),
    switch("NGIT_DELETION_REQUEST_DISRESPECTOR", Some("false"), "Whether requests to delete (NIP-09) and to vanish (NIP-62) are only kept and served: they delete nothing and keep nothing out."),
    switch("NGIT_GRASP06_ENABLE", Some("false"), "Whether contributors may push the commits of their pull requests to an address of their own, `/prs/<npub>/<identifier>.git` (GRASP-06), also for repositories that are not here. The relay and gitd must be told alike."),
    variable("NGIT_INTERNAL_TLS_CERT", None, "Certificate of this process, as a PEM file with its chain, for mutual TLS between processes on different machines: internal addresses are then `https://host:port`, and its name or address must be the one they are found by. Tokens are needed all the same: they say which role calls. `NGIT_GITD_HTTP_ADDRESS` may stay `http://` for an edge that leads git's paths there."),
    variable("NGIT_INTERNAL_TLS_KEY", None, "Its private key, as a PEM file."),
    variable("NGIT_INTERNAL_TLS_CA", None, "Certificates, as a PEM file, of those who sign the certificates of the other processes. Nobody else is let in or called."),
];

impl Variable {
    /// The variable of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        VARIABLES.iter().find(|variable| variable.name == name)
    }

    /// Its command-line flag, without the dashes.
    pub fn flag(&self) -> String {
        self.name
            .trim_start_matches("NGIT_")
            .to_lowercase()
            .replace('_', "-")
    }
}
