//! The certificates of a usual site, each created once: the service CA with its leaves, the
//! administrators' root with an issuing intermediate, and a CA that no site trusts.

use std::sync::LazyLock;

use crate::ca::Ca;
use crate::pki::{Cert, Leaf, Strings};

/// The CN of [`admin_issuer`], which sites list in `additional_issuer_cns`.
pub(crate) const ADMIN_ISSUER_CN: &str = "Site Admin Issuing CA";
/// The trust domain and path of service identities, up to the service's name.
pub(crate) const SERVICE_BASE: &str = "spiffe://nico.local/nico-system/sa/";
/// The trust domain and path of machine identities, up to the machine's id.
pub(crate) const MACHINE_BASE: &str = "spiffe://nico.local/nico-system/machine/";

/// The CA of service, machine and server certificates: the site's `root_cafile_path`.
pub(crate) fn root_ca() -> &'static Ca {
    static CA: LazyLock<Ca> =
        LazyLock::new(|| Ca::root("/O=NICo/CN=site-root", Strings::Printable));
    &CA
}

/// The root of the administrators' CAs: the site's `admin_root_cafile_path`.
pub(crate) fn admin_root() -> &'static Ca {
    static CA: LazyLock<Ca> =
        LazyLock::new(|| Ca::root("/O=Acme/CN=Acme Corporate Root", Strings::Printable));
    &CA
}

/// The issuing intermediate below [`admin_root`] whose CN sites list.
pub(crate) fn admin_issuer() -> &'static Ca {
    static CA: LazyLock<Ca> =
        LazyLock::new(|| admin_issuer_named(ADMIN_ISSUER_CN, Strings::Printable));
    &CA
}

/// A fresh intermediate below [`admin_root`].
pub(crate) fn admin_issuer_named(cn: &str, strings: Strings) -> Ca {
    admin_root().intermediate(&format!("/O=Acme/CN={cn}"), strings)
}

/// A CA that no site trusts.
pub(crate) fn other_ca() -> &'static Ca {
    static CA: LazyLock<Ca> =
        LazyLock::new(|| Ca::root("/O=Elsewhere/CN=Other Root", Strings::Printable));
    &CA
}

/// The server's certificate, for localhost, 127.0.0.1 and ::1.
pub(crate) fn server() -> &'static Leaf {
    static LEAF: LazyLock<Leaf> = LazyLock::new(|| server_cert().signed_by(root_ca()));
    &LEAF
}

/// A server certificate that a test can modify.
pub(crate) fn server_cert() -> Cert {
    Cert::new("/CN=nico-rewrap")
        .san("DNS:localhost")
        .san("IP:127.0.0.1")
        .san("IP:::1")
        .eku("serverAuth")
}

/// A SPIFFE service certificate that a test can modify. `name` is for example `nico-api`.
pub(crate) fn service_cert(name: &str) -> Cert {
    Cert::new("/").san(&format!("URI:{SERVICE_BASE}{name}"))
}

/// A SPIFFE service certificate signed by [`root_ca`].
pub(crate) fn service(name: &str) -> Leaf {
    service_cert(name).signed_by(root_ca())
}

/// A SPIFFE machine certificate signed by [`root_ca`].
pub(crate) fn machine() -> &'static Leaf {
    static LEAF: LazyLock<Leaf> = LazyLock::new(|| {
        let san = format!("URI:{MACHINE_BASE}fm100ht0123456789");
        Cert::new("/").san(&san).signed_by(root_ca())
    });
    &LEAF
}

/// An administrator's certificate without a SAN that a test can modify.
pub(crate) fn admin_cert() -> Cert {
    Cert::new("/O=Acme/OU=site-admins/CN=alice").eku("clientAuth")
}

/// An administrator's certificate signed by [`admin_issuer`]. It may call.
pub(crate) fn admin() -> &'static Leaf {
    static LEAF: LazyLock<Leaf> = LazyLock::new(|| admin_cert().signed_by(admin_issuer()));
    &LEAF
}
