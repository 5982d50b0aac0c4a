//! What can be seen of a vault, as lines of facts, so that reality and reference can be laid side by side.

use std::collections::HashMap;

#[derive(Clone, PartialEq, Eq)]
pub enum Fact {
    Is(Vec<u8>),
    /// An id: a symbol on one side, the real one on the other.
    Named(String),
}

impl Fact {
    pub fn text(text: &str) -> Fact {
        Fact::Is(text.as_bytes().to_vec())
    }

    pub fn number(number: usize) -> Fact {
        Fact::text(&number.to_string())
    }

    fn show(&self) -> String {
        match self {
            Fact::Named(name) => name.clone(),
            Fact::Is(bytes) if bytes.len() < 60 && bytes.iter().all(|b| (b' '..=b'~').contains(b)) => {
                String::from_utf8_lossy(bytes).into_owned()
            }
            Fact::Is(bytes) => format!("{} bytes {:02x?}…", bytes.len(), &bytes[..bytes.len().min(8)]),
        }
    }
}

#[derive(Clone)]
pub struct Line {
    label: String,
    facts: Vec<(&'static str, Fact)>,
}

pub type View = Vec<Line>;

pub fn line(label: String, facts: Vec<(&'static str, Fact)>) -> Line {
    Line { label, facts }
}

/// Which real id each symbol stands for, one to one.
#[derive(Clone, Default)]
pub struct Bindings {
    real: HashMap<String, String>,
    symbol: HashMap<String, String>,
}

impl Bindings {
    pub fn real(&self, symbol: &str) -> Option<&str> {
        self.real.get(symbol).map(String::as_str)
    }

    fn bind(&mut self, symbol: &str, real: &str) -> bool {
        let known = self.real.entry(symbol.to_owned()).or_insert_with(|| real.to_owned()) == real;
        known && self.symbol.entry(real.to_owned()).or_insert_with(|| symbol.to_owned()) == symbol
    }

    /// Forgets what a view does not name.
    pub fn only_of(&mut self, view: &View) {
        let named: Vec<&String> = view
            .iter()
            .flat_map(|line| &line.facts)
            .filter_map(|(_, fact)| if let Fact::Named(name) = fact { Some(name) } else { None })
            .collect();
        self.real.retain(|symbol, _| named.contains(&symbol));
        self.symbol.retain(|_, symbol| named.contains(&&*symbol));
    }
}

/// The first difference.
pub fn compare(real: &View, expected: &View, bindings: &mut Bindings) -> Result<(), String> {
    for (seen, meant) in real.iter().zip(expected) {
        if seen.label != meant.label {
            return Err(format!("{:?} is there, but {:?} was expected", seen.label, meant.label));
        }
        for ((what, seen_fact), (meant_what, meant_fact)) in seen.facts.iter().zip(&meant.facts) {
            let same = match (seen_fact, meant_fact) {
                (Fact::Named(real), Fact::Named(symbol)) => bindings.bind(symbol, real),
                (seen, meant) => what == meant_what && seen == meant,
            };
            if !same {
                let (label, known) = (&seen.label, meant_fact.show());
                let bound = bindings.real(&known).map(|real| format!(" ({real})")).unwrap_or_default();
                let mut message =
                    format!("{label}: {what} is {}, but {meant_what} {known}{bound} was expected", seen_fact.show());
                if let (Fact::Is(a), Fact::Is(b)) = (seen_fact, meant_fact)
                    && let Some(at) = a.iter().zip(b).position(|(a, b)| a != b)
                {
                    message += &format!("; first different byte at {at}");
                }
                return Err(message);
            }
        }
        if seen.facts.len() != meant.facts.len() {
            return Err(format!("{}: {} facts, {} expected", seen.label, seen.facts.len(), meant.facts.len()));
        }
    }
    match (real.get(expected.len()), expected.get(real.len())) {
        (Some(more), _) => Err(format!("{:?} is there and was not expected", more.label)),
        (_, Some(less)) => Err(format!("{:?} is missing", less.label)),
        (None, None) => Ok(()),
    }
}
