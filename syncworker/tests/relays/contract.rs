//! The contract over real gRPC, with the stand-in behind it.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt};
use grasp_proto::{
    contract::relay::{
        AuthenticateRequest, AuthenticateResponse, HeldRelay, InventoryRequest, InventoryResponse,
        LackingRequest, LackingResponse, LeaseRelaysRequest, LeaseRelaysResponse, Level, Method,
        RelayState, ReleaseRelaysRequest, ReleaseRelaysResponse, RenewRelaysRequest,
        RenewRelaysResponse, SubmitRequest, SubmitResponse, SubmitVerdict, TargetChanges,
        WatchTargetsRequest,
        relay_sync_server::{RelaySync, RelaySyncServer},
    },
    transport::{self, Endpoint, Guard, Role, Token, Tokens},
    words::EventId,
};
use grasp_syncworker::relays::context::{self, GrpcRelaySync};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, service::interceptor::InterceptedService};

use crate::{
    good_relay,
    stand::{Direct, Project, Stand, config, event, timing, told, until, work_over},
};

struct Service(Arc<Stand>);

type Parts<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl RelaySync for Service {
    type WatchTargetsStream = Parts<TargetChanges>;
    type InventoryStream = Parts<InventoryResponse>;

    async fn watch_targets(
        &self,
        _: Request<WatchTargetsRequest>,
    ) -> Result<Response<Self::WatchTargetsStream>, Status> {
        Ok(Response::new(self.0.stream().map(Ok).boxed()))
    }

    async fn lease_relays(
        &self,
        request: Request<LeaseRelaysRequest>,
    ) -> Result<Response<LeaseRelaysResponse>, Status> {
        assert!(request.get_ref().wait_millis > 0);
        let relays = self.0.wait_for_lease().await;
        Ok(Response::new(LeaseRelaysResponse { relays }))
    }

    async fn renew_relays(
        &self,
        request: Request<RenewRelaysRequest>,
    ) -> Result<Response<RenewRelaysResponse>, Status> {
        let relays = self.0.renew_all(request.into_inner().relays);
        Ok(Response::new(RenewRelaysResponse { relays }))
    }

    async fn release_relays(
        &self,
        request: Request<ReleaseRelaysRequest>,
    ) -> Result<Response<ReleaseRelaysResponse>, Status> {
        self.0.known().released.extend(request.into_inner().relays);
        Ok(Response::new(ReleaseRelaysResponse {}))
    }

    async fn inventory(
        &self,
        request: Request<InventoryRequest>,
    ) -> Result<Response<Self::InventoryStream>, Status> {
        let items = self.0.inventory_of(&request.get_ref().filter);
        // In several messages.
        let parts: Vec<_> = items
            .chunks(10)
            .map(|items| {
                let items = items.to_vec();
                Ok(InventoryResponse { items })
            })
            .collect();
        Ok(Response::new(futures::stream::iter(parts).boxed()))
    }

    async fn lacking(
        &self,
        request: Request<LackingRequest>,
    ) -> Result<Response<LackingResponse>, Status> {
        let ids = request.into_inner().ids;
        let ids = ids
            .iter()
            .map(|id| EventId::from_slice(id).unwrap())
            .collect();
        let lacking = context::RelaySync::lacking(&Direct(self.0.clone()), ids)
            .await
            .unwrap();
        let ids = lacking.iter().map(|id| id.as_bytes().to_vec()).collect();
        Ok(Response::new(LackingResponse { ids }))
    }

    async fn submit(
        &self,
        request: Request<SubmitRequest>,
    ) -> Result<Response<SubmitResponse>, Status> {
        let request = request.into_inner();
        let method = request.method();
        assert_ne!(method, Method::Unspecified);
        let verdict = |json: &String| SubmitVerdict {
            what: self.0.judge(method, json).into(),
            message: String::new(),
        };
        let verdicts = request.events.iter().map(verdict).collect();
        Ok(Response::new(SubmitResponse { verdicts }))
    }

    async fn authenticate(
        &self,
        request: Request<AuthenticateRequest>,
    ) -> Result<Response<AuthenticateResponse>, Status> {
        let request = request.into_inner();
        if request.token != 4 {
            return Err(Status::aborted("the lease is lost"));
        }
        let held = HeldRelay {
            url: request.url,
            token: request.token,
        };
        let stand = Direct(self.0.clone());
        let answer = context::RelaySync::authenticate(&stand, held, request.challenge).await;
        let event = answer.unwrap();
        Ok(Response::new(AuthenticateResponse { event }))
    }
}

#[tokio::test]
async fn relay_sync_speaks_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    let endpoint = Endpoint::Unix(directory.path().join("relay.sock"));
    let tokens = Tokens {
        relay: Token::random(),
        gitd: Token::random(),
        worker: Token::random(),
    };
    let stand = Stand::new();
    let service = RelaySyncServer::new(Service(stand.clone()));
    let guarded = InterceptedService::new(service, Guard::new(&tokens, &[Role::Worker]));
    let routes = transport::standard_routes(&tokens)
        .await
        .add_service(guarded);
    let listener = endpoint.listen().await.unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(transport::serve(listener, routes, stop.clone()));

    let project = Project::new(150);
    let (relay, url) = good_relay(&project.all).await;
    let half = project.all[..75]
        .iter()
        .map(|event| (event.id, event.clone()));
    stand.known().held.extend(half);
    stand.tell(told(vec![project.target(Level::Full, &[&url])]));
    stand.lease(&url, 4);
    let sync = GrpcRelaySync::new("worker-1".to_owned(), &endpoint, &tokens.worker);
    let mut worker = work_over(Arc::new(sync.clone()), config(), timing());
    until("all of the past is here", || stand.has(&project.all)).await;
    let live = event(
        &project.owner,
        1111,
        1_800_000_000,
        &[["e", &project.root.id.to_hex()]],
    );
    relay.add_event(live.clone()).await.unwrap();
    until("what is new comes by itself", || stand.has([&live])).await;
    until("it is said", || stand.is(&url, RelayState::Connected)).await;

    let held = |token| HeldRelay {
        url: url.clone(),
        token,
    };
    let answer = context::RelaySync::authenticate(&sync, held(4), "who?".into())
        .await
        .unwrap();
    assert!(nostr::Event::from_json(answer).unwrap().verify().is_ok());
    let lost = context::RelaySync::authenticate(&sync, held(5), "who?".into()).await;
    assert_eq!(lost, Err(grasp_syncworker::hunt::context::CallError::Lost));

    worker.stop.cancel();
    worker.task.take().unwrap().await.unwrap();
    assert_eq!(stand.known().released, [held(4)]);
    stop.cancel();
}
