//! The service that an operator's command is about, and its relay's Admin service.
//!
//! It is the one this user runs on this machine, found by the note it leaves ([`crate::run_dir`]), or
//! the one whose internal address and token are set.

use anyhow::{Context, bail};
use grasp_proto::{
    contract::relay::admin_client::AdminClient,
    process::settings::Settings,
    transport::{AuthorizedChannel, Endpoint, Role, Token},
};
use tonic::Status;

use crate::run_dir;

/// Room for one batch of whatever is listed.
const MAX_MESSAGE: usize = 16 << 20;

/// Where a running service is found.
pub struct Service {
    endpoint: Endpoint,
    token: Token,
}

impl Service {
    /// The service that `settings` lead to.
    pub fn find(settings: &Settings) -> anyhow::Result<Self> {
        let (endpoint, token) = find(settings)?;
        Ok(Self { endpoint, token })
    }

    /// Its Admin service.
    pub fn admin(&self) -> AdminClient<AuthorizedChannel> {
        AdminClient::new(self.endpoint.authorized(&self.token))
            .max_decoding_message_size(MAX_MESSAGE)
    }

    /// Why it did not do what it was asked, for the operator.
    pub fn failed(&self, status: &Status) -> anyhow::Error {
        let endpoint = &self.endpoint;
        match status.message() {
            "" => anyhow::anyhow!("the relay at {endpoint} answered {:?}", status.code()),
            words => anyhow::anyhow!("the relay at {endpoint}: {words}"),
        }
    }
}

/// Where the relay's internal services are, and the credential for them.
fn find(settings: &Settings) -> anyhow::Result<(Endpoint, Token)> {
    if settings.is_set("NGIT_RELAY_GRPC_ADDRESS") {
        let endpoint = settings.endpoint("NGIT_RELAY_GRPC_ADDRESS")?;
        return Ok((endpoint, settings.token_of(Role::Relay)?));
    }
    let bind = "NGIT_BIND_ADDRESS";
    let wanted = settings.get(bind).filter(|_| settings.is_set(bind));
    let mut notes = run_dir::notes();
    notes.retain(|note| wanted.is_none_or(|wanted| note.get(bind).is_some_and(|b| b == wanted)));
    let note = match notes.as_slice() {
        [note] => note,
        [] => bail!(
            "no service of this user runs on this machine{}; for one that is elsewhere, set \
             NGIT_RELAY_GRPC_ADDRESS and NGIT_INTERNAL_TOKEN_RELAY",
            wanted.map_or_else(String::new, |bind| format!(" with {bind} as its listener"))
        ),
        several => {
            let listeners = several.iter().filter_map(|note| note.get(bind));
            let listeners: Vec<&str> = listeners.map(String::as_str).collect();
            bail!(
                "several services run here; say which with --bind-address: {}",
                listeners.join(", ")
            )
        }
    };
    let line = |name: &str| {
        note.get(name)
            .with_context(|| format!("no {name} in its note"))
    };
    let endpoint = line("NGIT_RELAY_GRPC_ADDRESS")?.parse();
    let token = Token::parse(line("NGIT_INTERNAL_TOKEN_RELAY")?);
    Ok((
        endpoint.map_err(anyhow::Error::msg)?,
        token.map_err(anyhow::Error::msg)?,
    ))
}
