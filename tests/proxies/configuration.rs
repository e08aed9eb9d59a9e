//! Which proxy stands in front, and how it is told to: as our own pages say, or as people leave it.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

/// A proxy with its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Configuration {
    /// nginx, by the block in `README.md`.
    NginxOfReadme,
    /// nginx, by `docs/deploy/kubernetes/ingress.yaml`: git paths go straight to gitd.
    NginxOfIngress,
    /// nginx with next to nothing: HTTP/1.0, and everything buffered.
    NginxUnconfigured,
    /// nginx that streams, but waits for nothing longer than ten seconds.
    NginxImpatient,
    /// Caddy, by the block in `README.md`.
    CaddyOfReadme,
    /// Caddy, by `docs/deploy/edge/Caddyfile`: git paths go straight to gitd.
    CaddyOfEdge,
}

/// Where the proxy finds the service, and where it is found.
pub struct Addresses<'a> {
    pub directory: &'a Path,
    /// Without TLS.
    pub plain: u16,
    pub tls: u16,
    pub certificate: &'a Path,
    pub key: &'a Path,
    pub relay: u16,
    /// If it can be reached by itself.
    pub gitd: u16,
}

impl Configuration {
    pub const ALL: [Self; 6] = [
        Self::NginxOfReadme,
        Self::NginxOfIngress,
        Self::NginxUnconfigured,
        Self::NginxImpatient,
        Self::CaddyOfReadme,
        Self::CaddyOfEdge,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::NginxOfReadme => "nginx_of_the_readme",
            Self::NginxOfIngress => "nginx_of_the_ingress",
            Self::NginxUnconfigured => "nginx_unconfigured",
            Self::NginxImpatient => "nginx_impatient",
            Self::CaddyOfReadme => "caddy_of_the_readme",
            Self::CaddyOfEdge => "caddy_of_the_edge",
        }
    }

    pub fn is_caddy(self) -> bool {
        matches!(self, Self::CaddyOfReadme | Self::CaddyOfEdge)
    }

    /// Where its program is, or why it cannot be started.
    pub fn program(self) -> Result<PathBuf, String> {
        let name = if self.is_caddy() { "caddy" } else { "nginx" };
        let path = std::env::var_os("PATH").unwrap_or_default();
        // Debian's nginx is not in everybody's PATH.
        let more = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
        std::env::split_paths(&path)
            .chain(more)
            .map(|directory| directory.join(name))
            .find(|program| program.is_file())
            .ok_or_else(|| format!("{name} is not installed"))
    }

    /// Whether gitd is reached past the relay.
    pub fn leads_to_gitd(self) -> bool {
        matches!(self, Self::NginxOfIngress | Self::CaddyOfEdge)
    }

    /// Whether websockets come through.
    pub fn passes_websockets(self) -> bool {
        self != Self::NginxUnconfigured
    }

    /// Whether it is an nginx that passes requests on as they come.
    pub fn streams_requests(self) -> bool {
        self == Self::NginxImpatient
    }

    /// Whether it is there without TLS, too.
    pub fn is_plain_too(self) -> bool {
        self != Self::CaddyOfEdge
    }

    /// Its whole configuration.
    pub fn text(self, at: &Addresses) -> String {
        let relay = format!("127.0.0.1:{}", at.relay);
        match self {
            Self::NginxOfReadme => {
                let block = block("README.md", "```nginx\n", "```");
                let map = &block[block.find("map $http_upgrade").expect("the map")..];
                let map = &map[..=map.find('}').expect("its end")];
                nginx(at, map, &replaced(&block, "127.0.0.1:7334", &relay))
            }
            Self::NginxOfIngress => nginx(at, MAP, &ingress(at)),
            Self::NginxUnconfigured => {
                let location = format!(
                    "client_max_body_size 0;\n location / {{ proxy_pass http://{relay}; }}"
                );
                nginx(at, "", &location)
            }
            Self::NginxImpatient => {
                let location = format!(
                    "client_max_body_size 0; proxy_request_buffering off; proxy_buffering off;
                     proxy_connect_timeout 10s; proxy_read_timeout 10s; proxy_send_timeout 10s;
                     {NEIGHBOURS}
                     location / {{ proxy_pass http://{relay}; }}"
                );
                nginx(at, MAP, &location)
            }
            Self::CaddyOfReadme => {
                let block = block("README.md", "# Caddy\n", "```");
                let sites = format!(
                    "http://localhost:{}, https://localhost:{}",
                    at.plain, at.tls
                );
                let block = replaced(&block, "git.example.com", &sites);
                CADDY.to_owned() + &replaced(&block, "127.0.0.1:7334", &relay)
            }
            Self::CaddyOfEdge => {
                let file = read("docs/deploy/edge/Caddyfile");
                let site = format!("https://localhost:{}", at.tls);
                let file = replaced(&file, "{$GRASPD_EDGE_SITE}", &site);
                let file = replaced(&file, "{$GRASPD_EDGE_TLS}", "tls internal");
                let file = replaced(&file, "relay:7334", &relay);
                let gitd = format!("127.0.0.1:{}", at.gitd);
                CADDY.to_owned() + &replaced(&file, "gitd:7003", &gitd)
            }
        }
    }
}

/// What makes it one of many on a machine, and of no consequence to it.
const CADDY: &str = "{
    admin off
    skip_install_trust
    auto_https disable_redirects
    default_bind 127.0.0.1
}
";

const MAP: &str = "map $http_upgrade $connection_upgrade { default upgrade; '' ''; }";

/// What ingress-nginx says in every location.
const NEIGHBOURS: &str = "proxy_http_version 1.1;
    proxy_set_header Host $http_host;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection $connection_upgrade;
    proxy_set_header X-Forwarded-For $remote_addr;";

fn nginx(at: &Addresses, http: &str, server: &str) -> String {
    let directory = at.directory.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {directory}/{kind};\n"))
        .concat();
    let (plain, tls) = (at.plain, at.tls);
    let (certificate, key) = (at.certificate.display(), at.key.display());
    format!(
        "daemon off; master_process off; pid {directory}/pid; error_log stderr;
         events {{ worker_connections 512; }}
         http {{
             access_log off;
             {temporary}
             {http}
             server {{
                 listen 127.0.0.1:{plain};
                 listen 127.0.0.1:{tls} ssl http2;
                 ssl_certificate {certificate};
                 ssl_certificate_key {key};
                 {server}
             }}
         }}"
    )
}

/// What ingress-nginx makes of our ingress.
fn ingress(at: &Addresses) -> String {
    let file = read("docs/deploy/kubernetes/ingress.yaml");
    let mut server = NEIGHBOURS.to_owned();
    let annotations = file
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nginx.ingress.kubernetes.io/"));
    for annotation in annotations {
        let (name, value) = annotation.split_once(": ").expect("a value");
        let value = value.trim_matches('"');
        let name = match name {
            // By which paths are regular expressions, as they are below.
            "use-regex" => continue,
            "proxy-body-size" => "client_max_body_size".to_owned(),
            "proxy-request-buffering"
            | "proxy-buffering"
            | "proxy-read-timeout"
            | "proxy-send-timeout" => name.replace('-', "_"),
            other => panic!("what does nginx do for {other}?"),
        };
        writeln!(server, "\n{name} {value};").expect("a string takes all");
    }
    let mut path = None;
    for line in file.lines() {
        if let Some(found) = line.trim().strip_prefix("- path: ") {
            path = Some(found);
        }
        if line.trim().starts_with("backend: ") {
            let port = match line.contains("name: gitd,") {
                true => at.gitd,
                false => at.relay,
            };
            let path = path.take().expect("a path before its backend");
            writeln!(
                server,
                "\nlocation ~* \"^{path}\" {{ proxy_pass http://127.0.0.1:{port}; }}"
            )
            .expect("a string takes all");
        }
    }
    assert_eq!(server.matches("location").count(), 2, "{server}");
    server
}

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What stands in a file behind `begin`, up to `end`.
fn block(file: &str, begin: &str, end: &str) -> String {
    let text = read(file);
    let (_, rest) = text.split_once(begin).expect(begin);
    rest.split_once(end).expect(end).0.to_owned()
}

fn replaced(text: &str, what: &str, by: &str) -> String {
    assert!(text.contains(what), "{what} in {text}");
    text.replace(what, by)
}
