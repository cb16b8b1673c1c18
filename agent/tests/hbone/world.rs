//! Two pods on loopback addresses, each with its own agent, and the apps in them.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use culvert::hbone::{Destination, HboneConfig};
use culvert::identity::{
    Ca, CertStore, Compliance, EmbeddedCa, PeerRules, Revocations, SignedChain, SpiffeId, WorkloadCert,
};
use culvert::proxy::{Hop, Mesh, PodProxy, ProxyConfig, Shared, Stage, TunnelFlow, open_at, serve_pod};
use culvert::sys::netns_cookie;
use culvert_common::{Decision, OriginalDst, Reason};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

/// The service of the IPv4 apps.
pub(crate) const VIP: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 96, 0, 3);

pub(crate) fn id(account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "test", account)
}

/// Plays kernel and model: every connection was going to `target`, over IPv4 by way of [`VIP`].
pub(crate) struct FakeMesh {
    pub(crate) target: Mutex<Option<SocketAddr>>,
    /// Instead of the one to the target, when there are any.
    pub(crate) hops: Mutex<Vec<Hop>>,
    pub(crate) decision: Mutex<Decision>,
    pub(crate) identities: Mutex<HashMap<IpAddr, SpiffeId>>,
    pub(crate) sources: Mutex<HashMap<SocketAddr, SocketAddr>>,
    pub(crate) flows: Mutex<Vec<TunnelFlow>>,
    /// What was reported as led to another endpoint.
    pub(crate) elsewhere: Mutex<Vec<(u64, SocketAddr, SocketAddr)>>,
}

impl Mesh for FakeMesh {
    fn hops(
        &self,
        _requested: SocketAddr,
        target: SocketAddr,
        _own: &[IpAddr],
    ) -> Result<Vec<Hop>, (Reason, String)> {
        let hops = self.hops.lock().unwrap().clone();
        if !hops.is_empty() {
            return Ok(hops);
        }
        let identity = self.identities.lock().unwrap().get(&target.ip()).cloned();
        let identity = identity.ok_or((Reason::OutsideMesh, "nobody".to_owned()))?;
        Ok(vec![Hop {
            address: target.ip(),
            port: None,
            expected: (&identity).into(),
            authority: target,
            waypoint: false,
        }])
    }

    fn service_host(&self, _vip: IpAddr) -> Option<String> {
        Some("db.hello.svc.cluster.local".to_owned())
    }

    fn decide(&self, _destination: SocketAddr, _client: IpAddr, _peer: &SpiffeId) -> Decision {
        *self.decision.lock().unwrap()
    }

    fn take_original_dst(&self, _netns: u64, _client: SocketAddr) -> io::Result<Option<OriginalDst>> {
        let target = *self.target.lock().unwrap();
        let vip = |target: SocketAddr| match target {
            SocketAddr::V4(_) => SocketAddr::new(VIP.into(), target.port()),
            SocketAddr::V6(_) => target,
        };
        Ok(target.map(|target| OriginalDst { requested: vip(target).into(), target: target.into() }))
    }

    fn put_original_src(&self, _netns: u64, local: SocketAddr, client: SocketAddr) -> io::Result<()> {
        self.sources.lock().unwrap().insert(local, client);
        Ok(())
    }

    fn remove_original_src(&self, _netns: u64, local: SocketAddr) {
        self.sources.lock().unwrap().remove(&local);
    }

    fn went_elsewhere(&self, netns: u64, requested: SocketAddr, target: SocketAddr) {
        self.elsewhere.lock().unwrap().push((netns, requested, target));
    }

    fn report(&self, flow: TunnelFlow) {
        self.flows.lock().unwrap().push(flow);
    }
}

impl FakeMesh {
    /// The first flow like this, waited for.
    pub(crate) async fn flow(&self, what: &str, like: impl Fn(&TunnelFlow) -> bool) -> TunnelFlow {
        let find = || self.flows.lock().unwrap().iter().find(|flow| like(flow)).cloned();
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            if let Some(flow) = find() {
                return flow;
            }
            assert!(Instant::now() < deadline, "no flow {what} among {:#?}", self.flows.lock().unwrap());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn refusal(&self, reason: Reason) -> TunnelFlow {
        let like = |f: &TunnelFlow| f.stage == Stage::Refused && f.decision.reason == reason;
        self.flow(reason.as_str(), like).await
    }
}

pub(crate) async fn eventually<T>(what: &str, mut get: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(value) = get() {
            return value;
        }
        assert!(Instant::now() < deadline, "timed out waiting for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Client pod 127.0.0.2 (`client`), server pod 127.0.0.3 (`server`); or both ::1.
pub(crate) struct World {
    pub(crate) mesh: Arc<FakeMesh>,
    pub(crate) client: Arc<Shared>,
    pub(crate) server: Arc<Shared>,
    pub(crate) ca_dir: tempfile::TempDir,
    pub(crate) server_ip: IpAddr,
    pub(crate) client_ip: IpAddr,
    pub(crate) outbound: SocketAddr,
    pub(crate) hbone: SocketAddr,
    pub(crate) stop: CancellationToken,
    pub(crate) stop_server: CancellationToken,
    server_pod: PodProxy,
    pub(crate) tasks: Vec<JoinHandle<()>>,
}

pub(crate) struct Setup {
    pub(crate) ttl: Duration,
    pub(crate) hbone: HboneConfig,
    pub v6: bool,
    pub(crate) proxy: ProxyConfig,
    /// Listens where the server pod's agent should.
    pub(crate) impostor: Option<SocketAddr>,
    /// Revocation lists that both agents follow.
    pub(crate) crl: Option<std::path::PathBuf>,
    pub(crate) compliance: Compliance,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            ttl: DAY,
            hbone: HboneConfig::default(),
            v6: false,
            proxy: ProxyConfig::default(),
            impostor: None,
            crl: None,
            compliance: Compliance::None,
        }
    }
}

pub(crate) fn netns() -> OwnedFd {
    File::open("/proc/self/ns/net").unwrap().into()
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(Setup::default()).await
    }

    pub(crate) async fn with(setup: Setup) -> Self {
        let ca_dir = tempfile::tempdir().unwrap();
        let ip = |v4: &str| if setup.v6 { "::1" } else { v4 }.parse::<IpAddr>().unwrap();
        let (client_ip, server_ip) = (ip("127.0.0.2"), ip("127.0.0.3"));
        let mesh = Arc::new(FakeMesh {
            target: Mutex::default(),
            hops: Mutex::default(),
            decision: Mutex::new(Decision::allow(Reason::NoPolicy)),
            identities: Mutex::new(HashMap::from([(server_ip, id("server"))])),
            sources: Mutex::default(),
            flows: Mutex::default(),
            elsewhere: Mutex::default(),
        });
        let (stop, stop_server) = (CancellationToken::new(), CancellationToken::new());
        let mut tasks = Vec::new();
        let mut serve = |ip: IpAddr, account: &str, hbone_port, stop: &CancellationToken| {
            let ca = EmbeddedCa::open(ca_dir.path(), setup.ttl).unwrap();
            let revocations = setup.crl.clone().map(Revocations::follow).unwrap_or_default();
            let rules = PeerRules { revocations, compliance: setup.compliance, ..PeerRules::default() };
            let certs = CertStore::with_rules(Ca::Embedded(ca), rules);
            let config = ProxyConfig {
                hbone_port,
                drain: Duration::from_millis(300),
                hbone: setup.hbone.clone(),
                ..setup.proxy.clone()
            };
            let threads = config.threads;
            let shared = Shared::new(mesh.clone(), certs, config).unwrap();
            let netns = netns();
            let any = SocketAddr::new(ip, 0);
            let listeners = open_at(&netns, &[any], any, threads).unwrap();
            let outbound = listeners[0].outbound[0].local_addr().unwrap();
            let inbound = listeners[0].inbound[0].local_addr().unwrap();
            let pod = PodProxy {
                netns_cookie: netns_cookie(&netns).unwrap(),
                netns: Arc::new(netns),
                identity: id(account),
                ips: vec![ip],
                name: format!("test/{account}"),
                baggage: "k8s.namespace.name=test".to_owned().into(),
            };
            tasks.push(serve_pod(pod.clone(), listeners, shared.clone(), stop.clone()).unwrap());
            (shared, outbound, inbound, pod)
        };
        let (server, _, hbone, server_pod) = serve(server_ip, "server", 0, &stop_server);
        let peer = setup.impostor.unwrap_or(hbone);
        let (client, outbound, ..) = serve(client_ip, "client", peer.port(), &stop);
        Self {
            mesh,
            client,
            server,
            ca_dir,
            server_ip,
            client_ip,
            outbound,
            hbone,
            stop,
            stop_server,
            server_pod,
            tasks,
        }
    }

    /// What a restarted agent does: new listeners at the same address.
    pub(crate) fn serve_server_again(&mut self) {
        let outbound = [SocketAddr::new(self.server_ip, 0)];
        let listeners =
            open_at(&self.server_pod.netns, &outbound, self.hbone, self.server.config.threads).unwrap();
        self.stop_server = CancellationToken::new();
        let (pod, shared) = (self.server_pod.clone(), self.server.clone());
        self.tasks.push(serve_pod(pod, listeners, shared, self.stop_server.clone()).unwrap());
    }

    /// A listening app in the server pod, which becomes the target of every connection.
    pub(crate) async fn app(&self) -> TcpListener {
        let listener = TcpListener::bind((self.server_ip, 0)).await.unwrap();
        *self.mesh.target.lock().unwrap() = Some(listener.local_addr().unwrap());
        listener
    }

    /// An app that sends back what it gets, to any number of clients.
    pub(crate) async fn echo(&self) {
        let listener = self.app().await;
        tokio::spawn(async move {
            while let Ok((mut tcp, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = tcp.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
    }

    /// An app of the client pod connects, and is led to its agent.
    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.outbound).await.unwrap()
    }

    /// Both ends of one connection through the tunnel.
    pub(crate) async fn pair(&self) -> (TcpStream, TcpStream) {
        let app = self.app().await;
        let client = self.connect().await;
        let (server, _) = tokio::time::timeout(Duration::from_secs(5), app.accept()).await.unwrap().unwrap();
        (client, server)
    }

    /// The server pod's HBONE listener, as a peer with `source`'s certificate sees it.
    pub(crate) fn destination(&self) -> Destination {
        Destination {
            source: id("client"),
            source_ip: self.client_ip,
            netns: Arc::new(netns()),
            netns_cookie: 1,
            expected: (&id("server")).into(),
            address: self.hbone,
        }
    }

    /// A certificate of the CA in `dir`, whose holder trusts this mesh's root.
    pub(crate) fn foreign_cert(&self, dir: &Path, identity: SpiffeId) -> WorkloadCert {
        let now = SystemTime::now();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let sign = |dir: &Path| {
            EmbeddedCa::open(dir, DAY).unwrap().sign_for_period(&identity, &key, now, now + DAY).unwrap()
        };
        let signed = SignedChain { chain: sign(dir).chain, roots: sign(self.ca_dir.path()).roots };
        WorkloadCert::new(identity.clone(), &key, signed, &PeerRules::default()).unwrap()
    }

    /// A certificate of this mesh's CA.
    pub(crate) fn cert(&self, identity: SpiffeId, age: Duration, ttl: Duration) -> WorkloadCert {
        cert_from(self.ca_dir.path(), identity, age, ttl)
    }
}

/// A certificate signed `age` ago by the CA in `dir`.
pub(crate) fn cert_from(dir: &Path, identity: SpiffeId, age: Duration, ttl: Duration) -> WorkloadCert {
    let ca = EmbeddedCa::open(dir, DAY).unwrap();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let start = SystemTime::now() - age;
    let signed = ca.sign_for_period(&identity, &key, start, start + ttl).unwrap();
    WorkloadCert::new(identity, &key, signed, &PeerRules::default()).unwrap()
}
