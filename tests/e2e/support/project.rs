//! An owner with a repository that is announced, signed for and pushed.

use super::{
    Client, Draft, Event, Keys, Out, Repo, Service,
    events::{self, coordinate},
    git,
};

/// One owner's project.
pub struct Project {
    pub owner: Keys,
    pub identifier: String,
    pub repo: Repo,
}

impl Project {
    /// With one commit on `main`, unknown to any service.
    pub async fn new(identifier: &str) -> Self {
        Self {
            owner: Keys::generate(),
            identifier: identifier.to_owned(),
            repo: Repo::new().await,
        }
    }

    /// A new project that is announced and waits.
    pub async fn announced(service: &Service, client: &mut Client, identifier: &str) -> Self {
        let project = Self::new(identifier).await;
        client
            .publish(&project.announcement(service).sign(&project.owner))
            .await
            .waits();
        project
    }

    /// A new project that is served: announcement and state, with its data.
    pub async fn active(service: &Service, client: &mut Client, identifier: &str) -> Self {
        let project = Self::announced(service, client, identifier).await;
        project.update(service, client, &["main"]).await;
        project
    }

    pub fn coordinate(&self) -> String {
        coordinate(&self.owner, &self.identifier)
    }

    pub fn announcement(&self, service: &Service) -> Draft {
        events::announcement(service, &self.owner, &self.identifier)
    }

    /// A state of all branches and tags as they are now.
    pub async fn state(&self) -> Draft {
        events::state_of(&self.identifier, &self.repo).await
    }

    pub fn url(&self, service: &Service) -> String {
        service.url(&self.owner, &self.identifier)
    }

    pub async fn push(&self, service: &Service, refspecs: &[&str]) -> Out {
        self.repo.push(&self.url(service), refspecs).await
    }

    /// Publishes the state as it is now, which must wait, and pushes; the state is served then.
    pub async fn update(&self, service: &Service, client: &mut Client, refspecs: &[&str]) -> Event {
        let state = self.state().await.sign(&self.owner);
        client.publish(&state).await.waits();
        self.push(service, refspecs).await.good();
        assert!(
            client.serves(&state).await,
            "pushed, but the state is not served"
        );
        state
    }

    /// The branches and tags the service shows.
    pub async fn remote_refs(&self, service: &Service) -> Vec<(String, String)> {
        git::remote_refs(&self.url(service)).await
    }

    pub async fn remote_ref(&self, service: &Service, name: &str) -> Option<String> {
        git::remote_ref(&self.url(service), name).await
    }

    /// Whether the service hosts the repository.
    pub async fn hosted(&self, service: &Service) -> bool {
        match service
            .repository_status(&self.owner, &self.identifier)
            .await
        {
            200 => true,
            404 => false,
            status => panic!("a repository answers {status}"),
        }
    }
}
