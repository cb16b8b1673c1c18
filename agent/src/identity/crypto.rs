//! The cryptography of TLS: AWS-LC, through rustls; which of it is offered, and whether it is the FIPS module.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore};

/// Whether this program was built with the FIPS module (Cargo feature `fips`).
pub const FIPS_BUILD: bool = cfg!(feature = "fips");

/// The version, and which AWS-LC is in it.
pub const VERSION: &str = if FIPS_BUILD {
    concat!(env!("CARGO_PKG_VERSION"), " (AWS-LC, FIPS module)")
} else {
    concat!(env!("CARGO_PKG_VERSION"), " (AWS-LC)")
};

/// What is left out of TLS for the sake of a rule: the values of Istio's `COMPLIANCE_POLICY`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Compliance {
    /// Nothing.
    #[default]
    #[value(name = "none", alias = "")]
    None,
    /// What is not in the FIPS module; a program without it does not start.
    #[value(name = "fips-140-2")]
    Fips,
    /// Key exchange that a quantum computer could break: X25519MLKEM768 only.
    #[value(name = "pqc")]
    PostQuantum,
}

impl Compliance {
    /// # Errors
    ///
    /// The FIPS module is asked for, or was built in, and is not what encrypts.
    pub fn check(self) -> Result<(), String> {
        let wanted = FIPS_BUILD || self == Self::Fips;
        match (wanted, is_fips(&provider(self))) {
            (false, _) | (true, true) => Ok(()),
            (true, false) if FIPS_BUILD => {
                Err("this program was built with the FIPS module, which does not work here: FIPS mode is off"
                    .to_owned())
            }
            (true, false) => Err(
                "--compliance-policy=fips-140-2: this program was built without the FIPS module; build it with `cargo build \
                 --release -p culvert --features fips`"
                    .to_owned(),
            ),
        }
    }
}

/// Not only the algorithms: the TLS settings, too.
fn is_fips(provider: &Arc<CryptoProvider>) -> bool {
    let settings = ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[&TLS13]);
    let settings = settings.map(|s| s.with_root_certificates(RootCertStore::empty()).with_no_client_auth());
    provider.fips() && settings.is_ok_and(|settings| settings.fips())
}

/// AWS-LC with the two AES-GCM suites that every HBONE peer has; the hybrid group first, so that recorded traffic
/// stays secret from a later quantum computer, and plain groups for peers that lack it.
pub(super) fn provider(compliance: Compliance) -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![
        aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
    ];
    let hybrid = aws_lc_rs::kx_group::X25519MLKEM768.name();
    provider.kx_groups.sort_by_key(|group| group.name() != hybrid);
    match compliance {
        Compliance::None => {}
        Compliance::Fips => provider.kx_groups.retain(|group| group.fips()),
        Compliance::PostQuantum => provider.kx_groups.retain(|group| group.name() == hybrid),
    }
    Arc::new(provider)
}

#[cfg(test)]
mod tests {
    use rustls::NamedGroup;

    use super::*;

    fn groups(compliance: Compliance) -> Vec<NamedGroup> {
        provider(compliance).kx_groups.iter().map(|group| group.name()).collect()
    }

    #[test]
    fn the_hybrid_group_comes_first_and_a_policy_leaves_others_out() {
        use NamedGroup::{X25519, X25519MLKEM768, secp256r1, secp384r1};
        let all = if FIPS_BUILD {
            vec![X25519MLKEM768, secp256r1, secp384r1]
        } else {
            vec![X25519MLKEM768, X25519, secp256r1, secp384r1]
        };
        assert_eq!(groups(Compliance::None), all);
        assert_eq!(groups(Compliance::PostQuantum), [X25519MLKEM768]);
        let suites = provider(Compliance::None).cipher_suites.clone();
        let suites: Vec<String> = suites.iter().map(|suite| format!("{:?}", suite.suite())).collect();
        assert_eq!(suites, ["TLS13_AES_256_GCM_SHA384", "TLS13_AES_128_GCM_SHA256"]);
    }

    /// In either build; the one with the module is not made by every test run.
    #[test]
    fn fips_is_what_was_built_in_and_nothing_else_passes_for_it() {
        assert_eq!(provider(Compliance::None).fips(), FIPS_BUILD);
        assert_eq!(Compliance::Fips.check().is_ok(), FIPS_BUILD);
        assert!(Compliance::None.check().is_ok() && Compliance::PostQuantum.check().is_ok());
        assert_eq!(VERSION.contains("FIPS"), FIPS_BUILD);
    }
}
