//! `vaultfs key …`: the KEKs, their rotation and their end.

use super::Global;
use super::client::Client;
use super::exit::Failure;
use super::output::{fields, print, print_json, shown, table};
use super::place;
use crate::api::percent::encode;
use crate::api::shape::{KeyMove, KeyPair, List, NewPin, NewToken, Status};
use crate::api::{Code, Problem};
use crate::daemon::process;
use crate::vault::{KekInfo, MigrationInfo, Outcome, RotationInfo, TokenCheck, Vault};
use axum::http::Method;
use clap::Subcommand;
use std::io::IsTerminal;
use std::time::Duration;

/// How often a rotation is looked at.
const LOOK: Duration = Duration::from_millis(200);
const BAR: u64 = 30;

#[derive(Subcommand)]
pub enum Key {
    /// Make new KEK versions, wrap every DEK under them, and destroy the old ones; values are not rewritten
    #[command(group(clap::ArgGroup::new("what").required(true).args(["organization", "all", "root"])))]
    Rotate {
        /// Name or id (org_…)
        organization: Option<String>,
        /// Every organization, deleted ones that can be restored too
        #[arg(long)]
        all: bool,
        /// The vault's own KEK, and the root key with every KEK that is wrapped under it
        #[arg(long)]
        root: bool,
    },
    /// Move the keys of an organization: new KEK versions elsewhere, every DEK wrapped under them; values are not rewritten
    Move {
        /// Name or id (org_…)
        organization: String,
        /// `token`, `wrapped`, or the token of its own that shall hold them, as in pkcs11:token=acme?module-path=…
        #[arg(long, value_name = "RESIDENCY")]
        to: String,
        /// Where the PIN of that token is read: file:PATH, credential:NAME
        #[arg(long, value_name = "SOURCE")]
        pin_source: Option<String>,
    },
    /// Move the vault to another token: every key gets a new version there, and the old one is not needed any more at the end
    #[command(
        after_help = "Values are not rewritten, reads and writes go on, and what is cut short goes on at the next mount. Both \
        tokens are needed until the end. Organizations with tokens of their own stay there. Repeat the command to follow it, or with \
        another source of the PIN."
    )]
    Migrate {
        /// The token that shall hold the keys, as in pkcs11:token=new?module-path=…
        #[arg(long, value_name = "PKCS11-URI")]
        token: String,
        /// Where its PIN is read from then on: file:PATH, credential:NAME; without a daemon also prompt or fd:N
        #[arg(long, value_name = "SOURCE")]
        pin_source: String,
    },
    /// Try what a token does and what it lets others do: mechanisms, attacks on scratch keys, latency
    #[command(after_help = "Exit code 5 when the token serves no suite, or an attack succeeds.")]
    Check {
        /// Name or id (org_…): the token that holds its keys; without, the vault's own
        #[arg(conflicts_with_all = ["token", "pin_source"])]
        organization: Option<String>,
        /// Another token, before a vault is made on it
        #[arg(long, value_name = "PKCS11-URI", requires = "pin_source")]
        token: Option<String>,
        /// Where its PIN is read
        #[arg(long, value_name = "SOURCE", requires = "token")]
        pin_source: Option<String>,
    },
    /// Give the token another PIN: the one that is read from SOURCE now, and at every mount from then on
    SetPin {
        /// file:PATH or credential:NAME; without a daemon also prompt or fd:N
        #[arg(value_name = "SOURCE")]
        new: String,
    },
    /// List the KEKs of an organization, or of the whole vault
    List {
        /// Name or id (org_…)
        organization: Option<String>,
    },
    /// Show a KEK
    Show {
        /// As `key list` names it (kek_…:v1), or without the version
        kek: String,
    },
    /// Destroy the KEK of a pair for good: every object that carries the pair is closed for ever
    Revoke {
        /// Name or id (org_…)
        organization: String,
        /// As in customer=c17
        #[arg(value_name = "KEY=VALUE", value_parser = pair)]
        pair: (String, String),
        /// It cannot be undone: say that you mean it
        #[arg(long, required = true)]
        for_ever: bool,
    },
}

impl Key {
    pub fn run(self, global: &Global) -> Result<(), Failure> {
        if let Key::Check { token: Some(token), pin_source: Some(pin), .. } = &self {
            process::keep_secrets();
            let found = Vault::check_other_token(token, pin).map_err(|e| Failure::from(Problem::from(e)))?;
            return report(&found, global);
        }
        let client = &mut Client::new(&place::state(global)?)?;
        match self {
            Key::Rotate { root: true, .. } => {
                client.order("/keys/root/rotate", &())?;
                follow(client, None, global)
            }
            Key::Rotate { organization: Some(organization), .. } => {
                let route = format!("/organizations/{}/rotate", encode(organization.as_bytes()));
                client.order(&route, &()).map_err(|f| f.about(&organization))?;
                follow(client, Some(&organization), global)
            }
            Key::Rotate { .. } => {
                client.order("/keys/rotate", &())?;
                follow(client, None, global)
            }
            Key::Move { organization, to, pin_source } => {
                let route = format!("/organizations/{}/move", encode(organization.as_bytes()));
                let body = KeyMove { residency: to, pin_source };
                client.order(&route, &body).map_err(|f| f.about(&organization))?;
                follow(client, Some(&organization), global)
            }
            Key::Migrate { token, pin_source } => {
                client.order("/keys/migrate", &NewToken { token, pin_source: absolute(pin_source)? })?;
                follow_migration(client, global)
            }
            Key::Check { organization, .. } => {
                let which = organization.map(|o| format!("?organization={}", encode(o.as_bytes()))).unwrap_or_default();
                report(&client.ask(Method::GET, &format!("/keys/check{which}"))?, global)
            }
            Key::SetPin { new } => client.order("/keys/pin", &NewPin { pin_source: absolute(new)? }),
            Key::List { organization } => list(client, organization.as_deref(), global),
            Key::Show { kek } => show(client, &kek, global),
            Key::Revoke { organization, pair: (key, value), .. } => {
                let route = format!("/organizations/{}/revoke", encode(organization.as_bytes()));
                client.order(&route, &KeyPair { key, value }).map_err(|f| f.about(&organization))
            }
        }
    }
}

/// Waits until the rotations are done, with a bar on a terminal. A daemon goes on with them when nobody waits.
fn follow(client: &mut Client, organization: Option<&str>, global: &Global) -> Result<(), Failure> {
    let bar = std::io::stderr().is_terminal() && !global.json;
    let ours =
        |r: &RotationInfo| organization.is_none_or(|which| which == r.organization || which == r.organization_id);
    loop {
        let all: List<RotationInfo> = client.ask(Method::GET, "/keys/rotations")?;
        let left: Vec<_> = all.data.into_iter().filter(ours).collect();
        if bar {
            eprint!("\r{}\x1b[K", if left.is_empty() { String::new() } else { progress(&left) });
        }
        if left.is_empty() {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}

/// Waits until the vault is on its new token, and says what that means. A daemon goes on with it when nobody waits.
fn follow_migration(client: &mut Client, global: &Global) -> Result<(), Failure> {
    let terminal = std::io::stderr().is_terminal() && !global.json;
    let mut seen: Option<MigrationInfo> = None;
    loop {
        let status: Status = client.ask(Method::GET, "/status")?;
        let Some(now) = status.vault.migration else {
            if terminal {
                eprint!("\r\x1b[K");
            }
            let token = status.vault.token.uri;
            if global.json {
                return print_json(&serde_json::json!({ "token": token }));
            }
            let left = seen.map(|seen| {
                format!(
                    "{}: holds no key of this vault's own any more; organizations that brought it keep theirs",
                    seen.from
                )
            });
            let mut lines = vec![("token", shown(&token))];
            lines.extend(left.map(|left| ("left", left)));
            lines.push((
                "next mount",
                "reads token and PIN source from the vault: drop --token and --pin-source of a unit or fstab".into(),
            ));
            return print(&fields(&lines));
        };
        let waits = seen.as_ref().and_then(|seen| seen.waits.clone());
        if terminal {
            eprint!("\r{}\x1b[K", bar(now.done, now.total, now.milliseconds, now.waits.as_deref()));
        } else if let Some(why) = now.waits.as_ref().filter(|why| Some(*why) != waits.as_ref()) {
            eprintln!("waits: {why}");
        }
        seen = Some(now);
        std::thread::sleep(LOOK);
    }
}

fn progress(left: &[RotationInfo]) -> String {
    let sum = |of: fn(&RotationInfo) -> u64| left.iter().map(of).sum::<u64>();
    let begun = left.iter().map(|r| r.milliseconds).max().unwrap_or(0);
    bar(sum(|r| r.done), sum(|r| r.total), begun, left.iter().find_map(|r| r.error.as_deref()))
}

/// How far it is after so long, and what it waits for.
fn bar(done: u64, total: u64, milliseconds: u64, waits: Option<&str>) -> String {
    let total = total.max(1);
    let filled = (BAR * done / total).min(BAR) as usize;
    let eta = match (done, total.saturating_sub(done) * milliseconds / done.max(1) / 1000) {
        (0, _) => "?".to_owned(),
        (_, seconds) if seconds < 60 => format!("{seconds} s"),
        (_, seconds) => format!("{} min", seconds.div_ceil(60)),
    };
    let waits = waits.map(|why| format!("  waits: {why}")).unwrap_or_default();
    let bar = format!("[{}{}]", "#".repeat(filled), " ".repeat(BAR as usize - filled));
    format!("{bar} {done} of {total}, {eta} left{waits}")
}

fn list(client: &mut Client, organization: Option<&str>, global: &Global) -> Result<(), Failure> {
    let list = all(client, organization)?;
    if global.json {
        return print_json(&list);
    }
    let row = |k: &KekInfo| {
        let made = k.made_at.clone().unwrap_or_else(|| "-".into());
        [shown(&k.organization), shown(&k.pair), k.key_id.clone(), k.state.clone(), k.residency.clone(), made]
    };
    let rows: Vec<_> = list.data.iter().map(row).collect();
    print(&table(["organization", "pair", "id", "state", "residency", "made"], &rows))
}

fn show(client: &mut Client, kek: &str, global: &Global) -> Result<(), Failure> {
    let named = |k: &KekInfo| k.key_id == kek || k.key_id.rsplit_once(":v").is_some_and(|(id, _)| id == kek);
    let Some(found) = all(client, None)?.data.into_iter().rfind(named) else {
        return Err(Failure::new(Code::NotFound, format!("{kek}: there is no such KEK")));
    };
    if global.json {
        return print_json(&found);
    }
    print(&fields(&[
        ("id", found.key_id),
        ("organization", format!("{} {}", shown(&found.organization), found.organization_id).trim().to_owned()),
        ("pair", shown(&found.pair)),
        ("state", found.state),
        ("residency", found.residency),
        ("made", found.made_at.unwrap_or_else(|| "-".into())),
    ]))
}

/// The table of a token, and the exit code that says whether keys are safe in it.
fn report(found: &TokenCheck, global: &Global) -> Result<(), Failure> {
    if global.json {
        print_json(found)?;
    } else {
        print(&described(found))?;
    }
    match found.is_safe() {
        true => Ok(()),
        false => Err(Failure::new(Code::Token, "keys are not safe in this token: the table says why")),
    }
}

fn described(found: &TokenCheck) -> String {
    let micros = |time: Option<u64>| time.map_or_else(|| "-".to_owned(), |us| format!("{us} µs"));
    let suite = match (found.suite, &found.iv) {
        (Some(1), Some(iv)) => {
            format!("1: AES-256-GCM in the token, IV {}", if iv == "host" { "from the host" } else { iv })
        }
        (Some(_), _) => "2: HMAC-SHA256 in the token, AES-256-GCM on the host".to_owned(),
        (None, _) => "none".to_owned(),
    };
    let mut lines = vec![
        ("token", format!("{} (serial {})", shown(&found.label), shown(&found.serial))),
        ("model", format!("{} {} {}", shown(&found.manufacturer), shown(&found.model), found.firmware)),
        ("module", shown(&found.module)),
        ("suite", suite),
    ];
    if let Some(lacks) = &found.lacks {
        lines.push(("lacks", lacks.clone()));
    }
    lines.extend([("wrap", micros(found.wrap_us)), ("unwrap", micros(found.unwrap_us))]);
    let mechanisms =
        found.mechanisms.iter().map(|m| [m.mechanism.clone(), if m.offered { "yes" } else { "no" }.into()]);
    let attacks = found.attacks.iter().map(|attack| {
        let outcome = match attack.outcome {
            Outcome::Refused => "refused",
            Outcome::Succeeded => "SUCCEEDS",
            Outcome::Accepted => "succeeds, accepted",
            Outcome::NotPossible => "not possible",
        };
        [attack.attack.clone(), outcome.to_owned()]
    });
    [
        fields(&lines),
        table(["mechanism", "offered"], &mechanisms.collect::<Vec<_>>()),
        table(["attack", "outcome"], &attacks.collect::<Vec<_>>()),
    ]
    .join("\n")
}

/// A source whose file is named from the root: the daemon has another working directory.
fn absolute(source: String) -> Result<String, Failure> {
    match source.strip_prefix("file:") {
        Some(path) => Ok(format!("file:{}", std::path::absolute(path).map_err(|e| Failure::io(path, e))?.display())),
        None => Ok(source),
    }
}

fn all(client: &mut Client, organization: Option<&str>) -> Result<List<KekInfo>, Failure> {
    let route = match organization {
        Some(organization) => format!("/keys?organization={}", encode(organization.as_bytes())),
        None => "/keys".to_owned(),
    };
    client.ask(Method::GET, &route)
}

fn pair(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').ok_or("a pair is expected, as in customer=c17")?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_shows_how_much_is_done_and_how_long_the_rest_takes() {
        let rotation = |done, total| RotationInfo {
            organization: "acme".into(),
            organization_id: "org_x".into(),
            done,
            total,
            milliseconds: 10_000,
            error: None,
        };
        assert_eq!(
            progress(&[rotation(50, 100), rotation(0, 100)]),
            format!("[{:<30}] 50 of 200, 30 s left", "#######")
        );
        assert_eq!(progress(&[rotation(0, 0)]), format!("[{:<30}] 0 of 1, ? left", ""));
        assert_eq!(progress(&[rotation(1, 100)]), format!("[{:<30}] 1 of 100, 17 min left", ""));
    }
}
