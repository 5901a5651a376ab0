//! `config`: the agent's effective settings.

use crate::cli::ConfigFlags;
use crate::output::say;
use crate::settings::{AgentSettings, Defaults, FileConfig, environment};

/// Prints them; secrets as `***`.
pub fn run(flags: &ConfigFlags) -> anyhow::Result<()> {
    let file = FileConfig::read(flags.agent.config.as_deref())?;
    let settings = AgentSettings::resolve(&flags.agent, &file, &environment, &Defaults::default())?;
    let mut all = settings.public();
    all.extend(settings.secrets());
    if flags.json {
        let map: serde_json::Map<String, serde_json::Value> = all
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.into()))
            .collect();
        say!("{}", serde_json::to_string_pretty(&map)?);
    } else {
        for (name, value) in all {
            say!("{name:<16}{value}");
        }
    }
    Ok(())
}
