//! What graspd's processes have in common, and nothing that only one of them needs.
//!
//! - [`client`]: who is asking, and what one client may take
//! - [`words`]: identifiers, keys, object ids, ref names – checked once, at the border
//! - [`contract`]: the generated gRPC contracts, and messages turned into words
//! - [`transport`]: how a contract is reached: endpoints, credentials, deadlines, traces
//! - [`links`]: addresses as pages show them
//! - [`smart_http`]: what git clients ask for, and what they read when it is not there
//! - [`process`]: how a process lives: settings, logging, metrics, shutdown
//!
//! No policy, no git, no Nostr logic.

pub mod client;
pub mod contract;
pub mod links;
pub mod process;
pub mod smart_http;
pub mod transport;
pub mod words;
