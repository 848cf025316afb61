//! Keys: where they are found, and that they are new ones before the old ones expire.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use nbd_rs_plugin::{Error, Kind, Result};
use s3::creds::Credentials as Found;

use crate::config::Surroundings;
use crate::location::invalid;
use crate::metadata;
use crate::profile::Profile;

/// Keys that expire are replaced this long before.
const MARGIN: Duration = Duration::from_secs(300);
/// After a refresh that failed, the next one in the background waits this long.
const PAUSE: Duration = Duration::from_secs(10);

/// What a request is signed with.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Keys {
    /// The access key's id, which crosses the network.
    pub access: String,
    /// The secret, which does not.
    pub secret: String,
    /// The token of temporary keys, a secret as well.
    pub token: Option<String>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(***)")
    }
}

impl Keys {
    /// Keys that can be sent.
    ///
    /// # Errors
    /// If one holds what a header can't; nothing of them is in the error.
    pub(crate) fn new(access: &str, secret: &str, token: Option<&str>) -> Result<Self> {
        let sendable = |text: &str| text.chars().all(|c| c.is_ascii_graphic() && c != ',');
        if !sendable(access) || !token.is_none_or(sendable) || secret.chars().any(char::is_control)
        {
            return Err(invalid(
                "a key, secret or token holds characters that none can have",
            ));
        }
        Ok(Self {
            access: access.to_owned(),
            secret: secret.to_owned(),
            token: token.map(str::to_owned),
        })
    }

    /// A text of others with these secrets taken out.
    pub(crate) fn mask(&self, text: &str) -> String {
        let secrets = [Some(&self.secret), self.token.as_ref()];
        let long = secrets
            .into_iter()
            .flatten()
            .filter(|secret| secret.len() >= 4);
        long.fold(text.to_owned(), |text, secret| {
            text.replace(secret.as_str(), "***")
        })
    }
}

/// Keys with the time they end.
#[derive(Debug, Clone)]
pub(crate) struct Fetched {
    pub keys: Arc<Keys>,
    pub expires: Option<SystemTime>,
}

impl Fetched {
    fn lasting(keys: Keys) -> Self {
        Self {
            keys: Arc::new(keys),
            expires: None,
        }
    }

    fn remaining(&self, now: SystemTime) -> Option<Duration> {
        let expires = self.expires?;
        Some(expires.duration_since(now).unwrap_or_default())
    }
}

impl TryFrom<Found> for Fetched {
    type Error = Error;

    fn try_from(found: Found) -> Result<Self> {
        let missing = || Error::new(Kind::Denied, "the answer holds no keys");
        let token = found.session_token.or(found.security_token);
        let access = found.access_key.ok_or_else(missing)?;
        let secret = found.secret_key.ok_or_else(missing)?;
        Ok(Self {
            keys: Arc::new(Keys::new(&access, &secret, token.as_deref())?),
            expires: found.expiration.map(|at| at.0.into()),
        })
    }
}

/// Gets keys from where they are; may block.
type Fetch = Arc<dyn Fn() -> Result<Fetched> + Send + Sync>;

/// The keys of one store.
pub(crate) struct Credentials {
    fetch: Fetch,
    state: Mutex<State>,
    /// Held while keys are fetched: one fetch at a time.
    single: tokio::sync::Mutex<()>,
}

struct State {
    current: Fetched,
    refreshing: bool,
    not_before: Option<Instant>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(***)")
    }
}

impl Credentials {
    /// With keys from `fetch`, which is asked once now, and again before they expire.
    ///
    /// # Errors
    /// Whatever `fetch` says.
    pub(crate) async fn new(fetch: Fetch) -> Result<Arc<Self>> {
        let current = blocking(&fetch).await?;
        Ok(Arc::new(Self {
            fetch,
            state: Mutex::new(State {
                current,
                refreshing: false,
                not_before: None,
            }),
            single: tokio::sync::Mutex::new(()),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keys that are valid now. Only when they have expired does a request wait for new ones.
    ///
    /// # Errors
    /// If they have expired and no new ones can be had.
    pub(crate) async fn keys(self: &Arc<Self>) -> Result<Arc<Keys>> {
        let current = self.state().current.clone();
        match current.remaining(SystemTime::now()) {
            Some(Duration::ZERO) => self.renew(&current.keys).await,
            Some(left) if left < MARGIN => {
                self.renew_in_background(&current.keys);
                Ok(current.keys)
            }
            _ => Ok(current.keys),
        }
    }

    /// Newer keys than the `used` ones, which the store no longer takes.
    ///
    /// # Errors
    /// If none can be had.
    pub(crate) async fn renew(&self, used: &Arc<Keys>) -> Result<Arc<Keys>> {
        let _single = self.single.lock().await;
        let current = self.state().current.keys.clone();
        if !Arc::ptr_eq(&current, used) {
            return Ok(current);
        }
        let fetched = blocking(&self.fetch).await;
        let mut state = self.state();
        state.refreshing = false;
        match fetched {
            Ok(fetched) => {
                state.current = fetched;
                state.not_before = None;
                Ok(state.current.keys.clone())
            }
            Err(error) => {
                state.not_before = Some(Instant::now() + PAUSE);
                let error = Error::new(Kind::Transient, &error.message);
                Err(error.context("no new credentials"))
            }
        }
    }

    fn renew_in_background(self: &Arc<Self>, used: &Arc<Keys>) {
        let mut state = self.state();
        let early = state.not_before.is_some_and(|at| Instant::now() < at);
        if state.refreshing || early {
            return;
        }
        state.refreshing = true;
        drop(state);
        let (credentials, used) = (self.clone(), used.clone());
        tokio::spawn(async move {
            if let Err(error) = credentials.renew(&used).await {
                tracing::warn!("{error}; the old ones are used while they last");
            }
        });
    }
}

async fn blocking(fetch: &Fetch) -> Result<Fetched> {
    let fetch = fetch.clone();
    let fetched = tokio::task::spawn_blocking(move || fetch()).await;
    fetched.unwrap_or_else(|_| Err(Error::new(Kind::Panic, "looking for credentials panicked")))
}

/// Where settings are looked up: the environment, or a test's idea of it.
pub(crate) type Lookup = fn(&str) -> Option<String>;

/// The process's environment; an empty variable is none.
pub(crate) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Region and endpoint as the AWS tools find them. May block.
///
/// # Errors
/// If the profile can't be used.
pub(crate) fn surroundings(profile: Option<&str>, env: Lookup) -> Result<Surroundings> {
    let found = profile_of(profile, env)?;
    let region = env("AWS_REGION").or_else(|| env("AWS_DEFAULT_REGION"));
    let endpoint = env("AWS_ENDPOINT_URL_S3").or_else(|| env("AWS_ENDPOINT_URL"));
    Ok(Surroundings {
        region: region.or(found.region),
        endpoint: endpoint.or(found.endpoint),
    })
}

/// How to get keys: those of the location, or as the AWS tools find them.
pub(crate) fn source(given: Option<Keys>, profile: Option<String>, env: Lookup) -> Fetch {
    match given {
        Some(keys) => Arc::new(move || Ok(Fetched::lasting(keys.clone()))),
        None => Arc::new(move || find(profile.as_deref(), env)),
    }
}

/// A profile that was asked for by option, the environment, a profile, web identity, container,
/// instance.
fn find(profile: Option<&str>, env: Lookup) -> Result<Fetched> {
    if profile.is_none() {
        if let Some(keys) = keys_of_environment(env)? {
            return Ok(Fetched::lasting(keys));
        }
    }
    if let Some(keys) = profile_of(profile, env)?.keys {
        return Ok(Fetched::lasting(keys));
    }
    let set = |name: &str| env(name).is_some();
    let found = if set("AWS_WEB_IDENTITY_TOKEN_FILE") && set("AWS_ROLE_ARN") {
        Some(Found::from_sts_env("nbd-rs"))
    } else if set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
        || set("AWS_CONTAINER_CREDENTIALS_FULL_URI")
    {
        Some(Found::from_container_credentials_provider())
    } else if let Some(endpoint) = metadata::endpoint(env)? {
        return metadata::fetch(&endpoint);
    } else {
        None
    };
    match found {
        Some(found) => {
            let failed =
                |error| Error::new(Kind::Denied, format!("asking for credentials: {error}"));
            found.map_err(failed)?.try_into()
        }
        None => Err(Error::new(
            Kind::Denied,
            "no credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write a \
             profile to ~/.aws/credentials, or put KEY:SECRET@ before the location's host",
        )),
    }
}

fn keys_of_environment(env: Lookup) -> Result<Option<Keys>> {
    let pair = (env("AWS_ACCESS_KEY_ID"), env("AWS_SECRET_ACCESS_KEY"));
    match pair {
        (Some(access), Some(secret)) => {
            let token = env("AWS_SESSION_TOKEN");
            Keys::new(&access, &secret, token.as_deref()).map(Some)
        }
        (None, None) => Ok(None),
        _ => Err(Error::new(
            Kind::Denied,
            "only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY is set",
        )),
    }
}

/// The profile asked for by option or `AWS_PROFILE`, which must exist, or `default`.
fn profile_of(option: Option<&str>, env: Lookup) -> Result<Profile> {
    let asked = option.map(str::to_owned).or_else(|| env("AWS_PROFILE"));
    let name = asked.as_deref().unwrap_or("default");
    let read = |variable: &str, file: &str| {
        let home = || env("HOME").map(|home| PathBuf::from(home).join(".aws").join(file));
        let path = env(variable).map(PathBuf::from).or_else(home);
        let text = path.map(std::fs::read_to_string);
        text.and_then(|text| text.ok()).unwrap_or_default()
    };
    let credentials = read("AWS_SHARED_CREDENTIALS_FILE", "credentials");
    let profile = Profile::read(&credentials, &read("AWS_CONFIG_FILE", "config"), name)?;
    if asked.is_some() && !profile.exists {
        let text = format!("no profile {name:?} in the AWS credentials and config files");
        return Err(Error::new(Kind::Denied, text));
    }
    Ok(profile)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A fetch that counts, and gives keys that last so long.
    fn counting(lasting: &'static [u64]) -> (Fetch, Arc<AtomicU32>) {
        let count = Arc::new(AtomicU32::new(0));
        let counter = count.clone();
        let fetch = move || {
            let at = counter.fetch_add(1, Ordering::SeqCst) as usize;
            let Some(seconds) = lasting.get(at) else {
                return Err(Error::new(Kind::Denied, "gone"));
            };
            // Long enough for all who ask at once to be there.
            std::thread::sleep(Duration::from_millis(50));
            Ok(Fetched {
                keys: Arc::new(Keys::new(&format!("k{at}"), "secret", None)?),
                expires: Some(SystemTime::now() + Duration::from_secs(*seconds)),
            })
        };
        (Arc::new(fetch), count)
    }

    fn run<F: std::future::Future>(future: F) -> F::Output {
        nbd_rs_plugin::runtime::start(1).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(future)
    }

    #[test]
    fn f50_expired_keys_are_fetched_once_for_all_who_wait() {
        run(async {
            let (fetch, count) = counting(&[0, 3600]);
            let credentials = Credentials::new(fetch).await.unwrap();
            let ask = |_| {
                let credentials = credentials.clone();
                tokio::spawn(async move { credentials.keys().await.unwrap().access.clone() })
            };
            let asked: Vec<_> = (0..20).map(ask).collect();
            for one in asked {
                assert_eq!(one.await.unwrap(), "k1");
            }
            assert_eq!(count.load(Ordering::SeqCst), 2);
        });
    }

    #[test]
    fn f50_keys_about_to_expire_are_renewed_off_the_request_path() {
        run(async {
            let (fetch, count) = counting(&[200, 3600]);
            let credentials = Credentials::new(fetch).await.unwrap();
            for _ in 0..20 {
                assert_eq!(credentials.keys().await.unwrap().access, "k0");
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert_eq!(credentials.keys().await.unwrap().access, "k1");
            assert_eq!(count.load(Ordering::SeqCst), 2);
        });
    }

    #[test]
    fn f50_a_refresh_that_fails_leaves_the_old_keys_while_they_last() {
        run(async {
            let (fetch, count) = counting(&[200]);
            let credentials = Credentials::new(fetch).await.unwrap();
            for _ in 0..10 {
                assert_eq!(credentials.keys().await.unwrap().access, "k0");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(count.load(Ordering::SeqCst), 2, "no storm of refreshes");
            let keys = credentials.keys().await.unwrap();
            assert_eq!(
                credentials.renew(&keys).await.unwrap_err().kind,
                Kind::Transient
            );
        });
    }

    #[test]
    fn u1_keys_hide_in_debug_output_and_are_masked_in_texts_of_others() {
        let keys = Keys::new("AKID", "CANARY/1", Some("TOKEN1")).unwrap();
        assert_eq!(format!("{keys:?}"), "Keys(***)");
        assert_eq!(keys.mask("a CANARY/1 b TOKEN1"), "a *** b ***");
        for (access, secret) in [("a b", "s"), ("a", "s\r\nx"), ("a,b", "s"), ("ü", "s")] {
            assert!(Keys::new(access, secret, None).is_err());
        }
    }

    #[test]
    fn the_environment_goes_before_the_profile_unless_one_is_asked_for() {
        fn env(name: &str) -> Option<String> {
            let value = match name {
                "AWS_ACCESS_KEY_ID" => "AKIENV",
                "AWS_SECRET_ACCESS_KEY" => "s",
                "AWS_EC2_METADATA_DISABLED" => "true",
                _ => return None,
            };
            Some(value.to_owned())
        }
        let access = find(None, env).unwrap().keys.access.clone();
        assert_eq!(access, "AKIENV");
        let error = find(Some("nobody"), env).unwrap_err();
        assert!(error.message.contains("nobody"), "{error}");
    }

    #[test]
    fn keys_are_read_from_the_profile_file() {
        fn file() -> PathBuf {
            std::env::temp_dir().join(format!("nbd-rs-s3-credentials-{}", std::process::id()))
        }
        fn env(name: &str) -> Option<String> {
            match name {
                "AWS_SHARED_CREDENTIALS_FILE" => Some(file().display().to_string()),
                "AWS_CONFIG_FILE" => Some("/nonexistent".to_owned()),
                "AWS_EC2_METADATA_DISABLED" => Some("true".to_owned()),
                _ => None,
            }
        }
        let section = |name: &str| {
            format!("[{name}]\naws_access_key_id = AKI-{name}\naws_secret_access_key = s\n")
        };
        std::fs::write(file(), section("default") + &section("work")).unwrap();
        let access = |profile| find(profile, env).unwrap().keys.access.clone();
        let found = (access(None), access(Some("work")));
        std::fs::remove_file(file()).unwrap();
        assert_eq!(found, ("AKI-default".to_owned(), "AKI-work".to_owned()));
    }

    #[test]
    fn without_any_keys_the_error_says_where_they_may_be() {
        fn env(name: &str) -> Option<String> {
            (name == "AWS_EC2_METADATA_DISABLED").then(|| "true".to_owned())
        }
        let error = find(None, env).unwrap_err();
        assert_eq!(error.kind, Kind::Denied);
        assert!(error.message.contains("AWS_ACCESS_KEY_ID"), "{error}");
    }
}
