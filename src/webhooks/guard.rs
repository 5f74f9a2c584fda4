//! Which addresses may be asked. URLs of endpoints come from customers: without this they could have a worker talk to
//! whatever it can reach, metadata services first of all.
//!
//! What counts is the address that is connected to, not the one that a name had when somebody looked: this is the client's
//! own resolver, and it gives only addresses that it has found good. A URL with an address in it never gets to a resolver and
//! is looked at before.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use futures::future::BoxFuture;
use ipnet::IpNet;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::URL_MAX;

/// Finds a name's addresses.
pub type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// IPv4 that is not the public internet, as IANA lists it; and Azure's metadata service, which is on a public address.
const PRIVATE_V4: [&str; 17] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// All that is public of IPv6 …
const PUBLIC_V6: &str = "2000::/3";

/// … but for tunnels into IPv4 (Teredo, 6to4), documentation and what else is special.
const PRIVATE_V6: [&str; 5] = ["2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "2620:4f:8000::/48"];

/// Who may be asked.
#[derive(Clone)]
pub struct Guard {
    allowed: Vec<IpNet>,
    private: Arc<[IpNet]>,
    lookup: Lookup,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("allowed", &self.allowed).finish_non_exhaustive()
    }
}

/// Nobody there may be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// Not the public internet.
    #[error("{0} is in no public network; webhooks.allow_networks names others that may be asked")]
    Private(String),
    /// Public, and everybody on the way could read it.
    #[error("{0} is not in webhooks.allow_networks, and plain http:// is only for what is: use https://")]
    Plain(String),
}

impl Guard {
    /// The public internet, and these networks: CIDR, with commas between.
    pub fn new(allow: &str) -> anyhow::Result<Self> {
        Self::with_lookup(allow, Arc::new(|name| Box::pin(system(name))))
    }

    /// The same, with names found in another way.
    pub fn with_lookup(allow: &str, lookup: Lookup) -> anyhow::Result<Self> {
        let given = allow.split(',').map(str::trim).filter(|network| !network.is_empty());
        let read = |network: &str| -> anyhow::Result<IpNet> {
            let one = network.parse::<IpAddr>().map(IpNet::from);
            network
                .parse::<IpNet>()
                .or(one)
                .map_err(|_| anyhow::anyhow!("\"{network}\" is no network; write networks like 10.1.0.0/16, with commas between"))
        };
        let private = PRIVATE_V4.iter().chain(&PRIVATE_V6).filter_map(|network| network.parse().ok()).collect();
        Ok(Self { allowed: given.map(read).collect::<anyhow::Result<_>>()?, private, lookup })
    }

    /// Whether the address that `host` stands for may be asked, in plain HTTP or over TLS.
    pub fn permits(&self, host: &str, address: IpAddr, plain: bool) -> Result<(), Forbidden> {
        let address = meant(address);
        if self.allowed.iter().any(|network| network.contains(&address)) {
            return Ok(());
        }
        if !self.is_public(address) {
            return Err(Forbidden::Private(both(host, address)));
        }
        if plain { Err(Forbidden::Plain(both(host, address))) } else { Ok(()) }
    }

    fn is_public(&self, address: IpAddr) -> bool {
        let of_the_internet = match address {
            IpAddr::V4(_) => true,
            IpAddr::V6(_) => PUBLIC_V6.parse().is_ok_and(|public: IpNet| public.contains(&address)),
        };
        of_the_internet && !self.private.iter().any(|network| network.contains(&address))
    }

    /// Whether a URL could be an endpoint's, as it is stored; or what is wrong with it.
    pub fn check_url(&self, text: &str) -> Result<String, String> {
        let like = "write it like https://app.example/hooks";
        let url = Url::parse(text).map_err(|error| format!("is no URL ({error}); {like}"))?;
        let plain = match url.scheme() {
            "https" => false,
            "http" if !self.allowed.is_empty() => true,
            "http" => {
                return Err("must begin with https://: plain http:// is only for networks that webhooks.allow_networks names".to_owned());
            }
            _ => return Err(format!("must begin with https://; {like}")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must have no user and no password in it: the signature says that it is us".to_owned());
        }
        if url.fragment().is_some() {
            return Err("must have no #fragment: it would never be sent".to_owned());
        }
        if url.as_str().len() > URL_MAX {
            return Err(format!("must have at most {URL_MAX} characters"));
        }
        self.literal(&url, plain).map_err(|forbidden| format!("can't be asked: {forbidden}"))?;
        Ok(url.into())
    }

    /// Whether a URL may be asked if there is an address in it; a name's is known when it is connected to.
    pub(super) fn literal(&self, url: &Url, plain: bool) -> Result<(), Forbidden> {
        let Some(host) = url.host_str() else { return Ok(()) };
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        match host.parse() {
            Ok(address) => self.permits(host, address, plain),
            // Said at once rather than when it fails.
            Err(_) if host == "localhost" => self.permits(host, loopback, plain),
            Err(_) => Ok(()),
        }
    }

    /// For a client of URLs that are plain HTTP, or are not.
    pub(super) fn resolver(&self, plain: bool) -> Arc<Resolver> {
        Arc::new(Resolver { guard: self.clone(), plain })
    }
}

fn both(host: &str, address: IpAddr) -> String {
    let address = address.to_string();
    if host == address { address } else { format!("{host} ({address})") }
}

/// What an address comes down to: IPv4 in IPv6, as sockets have it and as NAT64 does, is that IPv4.
fn meant(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let nat64 = v6.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0];
    let low = || Ipv4Addr::from_bits(u32::try_from(v6.to_bits() & u128::from(u32::MAX)).unwrap_or_default());
    // `::a.b.c.d`, long out of use, is judged as what it once meant; all but loopback's and "any"'s own.
    let compatible = v6.segments()[..6] == [0; 6] && v6 != Ipv6Addr::LOCALHOST && v6 != Ipv6Addr::UNSPECIFIED;
    if nat64 || compatible { IpAddr::V4(low()) } else { v6.to_canonical() }
}

async fn system(name: String) -> io::Result<Vec<IpAddr>> {
    Ok(tokio::net::lookup_host((name, 0)).await?.map(|at| at.ip()).collect())
}

/// Gives a client the addresses of a name that may be asked.
#[derive(Debug)]
pub(super) struct Resolver {
    guard: Guard,
    plain: bool,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (guard, plain, name) = (self.guard.clone(), self.plain, name.as_str().to_owned());
        Box::pin(async move {
            let found = (guard.lookup)(name.clone()).await.map_err(|error| format!("{name} has no address: {error}"))?;
            let (good, bad): (Vec<_>, Vec<_>) =
                found.into_iter().map(|address| guard.permits(&name, address, plain).map(|()| address)).partition(Result::is_ok);
            match bad.into_iter().find_map(Result::err) {
                Some(forbidden) if good.is_empty() => Err(forbidden.into()),
                None if good.is_empty() => Err(format!("{name} has no address").into()),
                // The port is the URL's.
                _ => Ok(Box::new(good.into_iter().flatten().map(|address| SocketAddr::new(address, 0))) as Addrs),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permits(guard: &Guard, address: &str, plain: bool) -> bool {
        guard.permits("x", address.parse().unwrap(), plain).is_ok()
    }

    #[test]
    fn only_the_public_internet_may_be_asked_and_only_over_tls() {
        let guard = Guard::new("").unwrap();
        for public in ["8.8.8.8", "172.15.0.1", "172.32.0.1", "100.63.0.1", "2a00:1450:4001::1", "::ffff:8.8.8.8", "64:ff9b::808:808"] {
            assert!(permits(&guard, public, false), "{public}");
            assert!(!permits(&guard, public, true), "{public}");
        }
        let v4 = "0.0.0.0 10.1.2.3 100.64.0.1 127.0.0.1 127.255.255.255 168.63.129.16 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.192 \
                  192.168.1.1 198.18.0.1 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255";
        let v6 =
            ":: ::1 ::7f00:1 fe80::1 fc00::1 fd00:ec2::254 ff02::1 2001::1 2001:db8::1 2002:7f00:1:: 64:ff9b:1::1 100::1 5f00::1 3fff::1";
        for private in v4.split_whitespace().chain(v6.split_whitespace()) {
            assert!(!permits(&guard, private, false), "{private}");
        }
        for v4 in v4.split_whitespace() {
            assert!(!permits(&guard, &format!("::ffff:{v4}"), false) && !permits(&guard, &format!("64:ff9b::{v4}"), false), "{v4} in IPv6");
        }
    }

    #[test]
    fn what_is_allowed_may_be_asked_in_any_way_and_nothing_beside_it() {
        let guard = Guard::new("127.0.0.0/8, fd00:1::/32 , 10.0.0.7").unwrap();
        for good in ["127.0.0.1", "::ffff:127.0.0.1", "fd00:1::9", "10.0.0.7"] {
            assert!(permits(&guard, good, true) && permits(&guard, good, false), "{good}");
        }
        for bad in ["10.0.0.8", "::1", "fd00:2::9"] {
            assert!(!permits(&guard, bad, false), "{bad}");
        }
        assert!(Guard::new("10.0.0.0/33").unwrap_err().to_string().contains("write networks like"));
    }

    #[test]
    fn a_url_is_refused_with_what_is_wrong_with_it() {
        let (public, dev) = (Guard::new("").unwrap(), Guard::new("127.0.0.0/8").unwrap());
        assert_eq!(public.check_url("https://App.example/hooks?x=1").unwrap(), "https://app.example/hooks?x=1");
        assert!(dev.check_url("http://localhost:3000/").is_ok() && dev.check_url("http://127.0.0.1:3000/").is_ok());
        let long = format!("https://app.example/{}", "x".repeat(URL_MAX));
        for (url, words) in [
            ("", "is no URL"),
            ("app.example", "is no URL"),
            ("ftp://app.example", "must begin with https://"),
            ("http://app.example", "must begin with https://"),
            ("https://u:p@app.example", "no user"),
            ("https://app.example/#x", "no #fragment"),
            ("https://127.0.0.1/", "no public network"),
            ("https://2130706433/", "no public network"),
            ("https://0x7f.1/", "no public network"),
            ("https://[::ffff:10.0.0.1]/", "no public network"),
            ("https://localhost/", "no public network"),
            (&*long, "at most 2048"),
        ] {
            let said = public.check_url(url).unwrap_err();
            assert!(said.contains(words), "{url}: {said}");
        }
        assert!(dev.check_url("http://8.8.8.8/").unwrap_err().contains("use https://"));
    }
}
