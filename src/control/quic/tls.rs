//! TLS as the links use it: version 1.3, raw Ed25519 keys on both sides (RFC 7250), nothing else.
//!
//! TLS proves that the other end holds the secret half of the key that it shows, and no more:
//! any key is accepted here. Whether that key belongs to a peer of the network is decided by the
//! handshake of the mesh, over the connection and bound to it by the exporter.

use std::sync::Arc;

use anyhow::Context;
use aws_lc_rs::hkdf;
use aws_lc_rs::hmac;
use aws_lc_rs::signature::Ed25519KeyPair;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{EndpointConfig, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs as provider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme, version};

/// The application protocol, also the version of what is spoken over the stream.
const ALPN: &[u8] = b"weft";

/// What comes before the 32 bytes of an Ed25519 key in its SubjectPublicKeyInfo (RFC 8410).
const ED25519_SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The name in the dialler's SNI. Peers have no names in TLS; the field must be filled.
pub(super) const SERVER_NAME: &str = "weft";

/// Label of the exporter that binds the mesh's handshake to the connection (quic Q6).
const EXPORTER: &[u8] = b"EXPORTER-weft-session";

/// The two sides of a peer's TLS, and the endpoint's own secrets.
pub(super) struct Tls {
    pub(super) server: Arc<QuicServerConfig>,
    pub(super) client: Arc<QuicClientConfig>,
    pub(super) endpoint: EndpointConfig,
}

/// Makes the configuration of the identity whose Ed25519 seed this is.
pub(super) fn configure(seed: &[u8; 32]) -> anyhow::Result<Tls> {
    let pair = Ed25519KeyPair::from_seed_unchecked(seed).context("the signing key is unusable")?;
    let pkcs8 = pair.to_pkcs8v1().context("the signing key is unusable")?;
    let signer = provider::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8.as_ref()))
        .context("the signing key is unusable for TLS")?;
    let public = signer.public_key().context("the signing key shows no public key")?;
    let key = Arc::new(CertifiedKey::new(vec![CertificateDer::from(public.to_vec())], signer));
    let crypto = Arc::new(provider::default_provider());
    let verifier = Arc::new(AnyEd25519 { algorithms: crypto.signature_verification_algorithms });

    let mut server = rustls::ServerConfig::builder_with_provider(crypto.clone())
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(verifier.clone())
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(key.clone())));
    server.alpn_protocols = vec![ALPN.to_vec()];
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    server.max_early_data_size = 0;

    let mut client = rustls::ClientConfig::builder_with_provider(crypto)
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(key)));
    client.alpn_protocols = vec![ALPN.to_vec()];
    client.resumption = Resumption::disabled();
    client.enable_early_data = false;

    Ok(Tls {
        server: Arc::new(server.try_into().context("TLS 1.3 with AES-128-GCM is missing")?),
        client: Arc::new(client.try_into().context("TLS 1.3 with AES-128-GCM is missing")?),
        endpoint: endpoint_config(seed)?,
    })
}

/// The endpoint's secrets come from the identity, so that a router that was killed and started
/// again recognises the connections of its former life and tells the other ends to let go at
/// once (stateless reset, RFC 9000 10.3; quic Q13) instead of after the idle timeout.
fn endpoint_config(seed: &[u8; 32]) -> anyhow::Result<EndpointConfig> {
    let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, b"weft quic endpoint").extract(seed);
    let mut bytes = [0; 40];
    secret
        .expand(&[b"reset and connection id keys"], Length(bytes.len()))
        .and_then(|okm| okm.fill(&mut bytes))
        .context("deriving the endpoint's keys")?;
    let reset = hmac::Key::new(hmac::HMAC_SHA256, &bytes[..32]);
    let ids = bytes[32..].iter().fold(0, |key, byte| key << 8 | u64::from(*byte));
    let mut config = EndpointConfig::new(Arc::new(reset));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)));
    // The forwarder tells QUIC from sleeve by this bit (quic Q1).
    config.grease_quic_bit(false);
    Ok(config)
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// The key that the other end has proven, and the exporter of the connection.
pub(super) fn proven(connection: &quinn::Connection) -> Result<([u8; 32], [u8; 32]), &'static str> {
    let certificates = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or("the other end showed no key")?;
    let key = certificates.first().and_then(|spki| ed25519_key(spki)).ok_or("the other end's key is not Ed25519")?;
    let mut exporter = [0; 32];
    connection.export_keying_material(&mut exporter, EXPORTER, b"").map_err(|_| "TLS gives no exporter")?;
    Ok((key, exporter))
}

fn ed25519_key(spki: &[u8]) -> Option<[u8; 32]> {
    spki.strip_prefix(&ED25519_SPKI)?.try_into().ok()
}

/// Accepts every raw Ed25519 key whose owner signs the handshake with it.
#[derive(Debug)]
struct AnyEd25519 {
    algorithms: WebPkiSupportedAlgorithms,
}

impl AnyEd25519 {
    fn check_key(key: &CertificateDer<'_>, rest: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        match ed25519_key(key) {
            Some(_) if rest.is_empty() => Ok(()),
            _ => Err(CertificateError::BadEncoding.into()),
        }
    }

    fn check_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms)
    }
}

fn no_tls12() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not spoken here".to_owned())
}

impl ServerCertVerifier for AnyEd25519 {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Self::check_key(key, rest).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for AnyEd25519 {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Self::check_key(key, rest).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _key: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, key, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Code of every close by the application; what matters is the text.
pub(super) const CLOSE: VarInt = VarInt::from_u32(0);
