//! Subscription filters: the expression over attributes that says which messages a subscription keeps.
//!
//! The language is the one of "Filter messages from a subscription" in Pub/Sub's documentation. It knows nothing
//! about subscriptions or delivery.

use std::collections::HashMap;

use tonic::Status;

/// The longest filter that is accepted, in bytes.
const MAX_FILTER_BYTES: usize = 256;

/// A parsed filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Filter {
    Has(String),
    Equals(String, String),
    Prefix(String, String),
    Not(Box<Filter>),
    All(Vec<Filter>),
    Any(Vec<Filter>),
}

impl Filter {
    /// Reads a filter; an empty one is none.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` that says what was found where something else was wanted.
    pub(super) fn parse(text: &str) -> Result<Option<Self>, Status> {
        let bad = |why: String| Status::invalid_argument(format!("Invalid filter (filter={text}): {why}."));
        if text.len() > MAX_FILTER_BYTES {
            return Err(bad(format!("it is longer than {MAX_FILTER_BYTES} bytes")));
        }
        let mut tokens = Tokens { found: tokens(text).map_err(bad)?.into_iter().peekable() };
        if tokens.found.peek().is_none() {
            return Ok(None);
        }
        let filter = expression(&mut tokens).map_err(bad)?;
        match tokens.found.next() {
            None => Ok(Some(filter)),
            // The documented rule, and the mistake that is easiest to make.
            Some(Token::Word(word)) if word == "AND" || word == "OR" => {
                Err(bad("AND and OR may only be combined with parentheses".to_owned()))
            }
            Some(token) => Err(bad(format!("nothing may follow the expression, but {token} does"))),
        }
    }

    /// Whether a message with these attributes is kept.
    pub(super) fn keeps(&self, attributes: &HashMap<String, String>) -> bool {
        match self {
            Self::Has(key) => attributes.contains_key(key),
            Self::Equals(key, value) => attributes.get(key) == Some(value),
            Self::Prefix(key, prefix) => attributes.get(key).is_some_and(|value| value.starts_with(prefix)),
            Self::Not(inner) => !inner.keeps(attributes),
            Self::All(parts) => parts.iter().all(|part| part.keeps(attributes)),
            Self::Any(parts) => parts.iter().any(|part| part.keeps(attributes)),
        }
    }
}

/// `term`, `term AND term ...` or `term OR term ...`.
fn expression(tokens: &mut Tokens) -> Result<Filter, String> {
    let first = term(tokens)?;
    for (operator, join) in [("AND", Filter::All as fn(Vec<Filter>) -> Filter), ("OR", Filter::Any)] {
        let mut parts = vec![first.clone()];
        while tokens.take(&Token::Word(operator.to_owned())) {
            parts.push(term(tokens)?);
        }
        if parts.len() > 1 {
            return Ok(join(parts));
        }
    }
    Ok(first)
}

/// A comparison or an expression in parentheses, perhaps negated. The length limit bounds the recursion.
fn term(tokens: &mut Tokens) -> Result<Filter, String> {
    if tokens.take(&Token::Word("NOT".to_owned())) || tokens.take(&Token::Sign('-')) {
        return Ok(Filter::Not(Box::new(simple(tokens)?)));
    }
    simple(tokens)
}

fn simple(tokens: &mut Tokens) -> Result<Filter, String> {
    match tokens.found.next() {
        Some(Token::Sign('(')) => {
            let inner = expression(tokens)?;
            tokens.want(')')?;
            Ok(inner)
        }
        Some(Token::Word(word)) if word == "hasPrefix" => {
            tokens.want('(')?;
            if !tokens.take(&Token::Word("attributes".to_owned())) {
                return Err("hasPrefix wants attributes.KEY".to_owned());
            }
            tokens.want('.')?;
            let key = tokens.key()?;
            tokens.want(',')?;
            let prefix = tokens.text()?;
            tokens.want(')')?;
            Ok(Filter::Prefix(key, prefix))
        }
        Some(Token::Word(word)) if word == "attributes" => match tokens.found.next() {
            Some(Token::Sign(':')) => Ok(Filter::Has(tokens.key()?)),
            Some(Token::Sign('.')) => {
                let key = tokens.key()?;
                match tokens.found.next() {
                    Some(Token::Sign('=')) => Ok(Filter::Equals(key, tokens.text()?)),
                    // A message without the key differs too, and is kept.
                    Some(Token::NotEqual) => Ok(Filter::Not(Box::new(Filter::Equals(key, tokens.text()?)))),
                    other => Err(wanted("= or != after attributes.KEY", other)),
                }
            }
            other => Err(wanted("a colon or a dot after attributes", other)),
        },
        other => Err(wanted("a comparison of attributes", other)),
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// Letters, digits, `_` and `-`, not starting with `-`.
    Word(String),
    /// A string literal, unescaped.
    Text(String),
    Sign(char),
    NotEqual,
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Word(word) => f.write_str(word),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Sign(sign) => write!(f, "{sign}"),
            Self::NotEqual => f.write_str("!="),
        }
    }
}

fn wanted(what: &str, found: Option<Token>) -> String {
    match found {
        Some(token) => format!("{what} is wanted, not {token}"),
        None => format!("{what} is wanted, but the filter ends"),
    }
}

struct Tokens {
    found: std::iter::Peekable<std::vec::IntoIter<Token>>,
}

impl Tokens {
    fn take(&mut self, token: &Token) -> bool {
        self.found.next_if_eq(token).is_some()
    }

    fn want(&mut self, sign: char) -> Result<(), String> {
        match self.found.next() {
            Some(Token::Sign(found)) if found == sign => Ok(()),
            other => Err(wanted(&sign.to_string(), other)),
        }
    }

    fn key(&mut self) -> Result<String, String> {
        match self.found.next() {
            Some(Token::Word(key) | Token::Text(key)) => Ok(key),
            other => Err(wanted("an attribute's key", other)),
        }
    }

    fn text(&mut self) -> Result<String, String> {
        match self.found.next() {
            Some(Token::Text(text)) => Ok(text),
            other => Err(wanted("a string in double quotes", other)),
        }
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut found = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        found.push(match c {
            ' ' | '\t' | '\n' | '\r' => continue,
            '(' | ')' | ',' | '.' | ':' | '=' | '-' => Token::Sign(c),
            '!' if rest.next_if_eq(&'=').is_some() => Token::NotEqual,
            '"' => Token::Text(literal(&mut rest)?),
            _ if is_word(c) => {
                let mut word = String::from(c);
                while let Some(next) = rest.next_if(|&next| is_word(next) || next == '-') {
                    word.push(next);
                }
                Token::Word(word)
            }
            _ => return Err(format!("the character {c:?} needs a string in double quotes around it")),
        });
    }
    Ok(found)
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The rest of a string literal, its opening quote already taken.
fn literal(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<String, String> {
    let unclosed = || "a string is not closed".to_owned();
    let mut text = String::new();
    loop {
        match rest.next().ok_or_else(unclosed)? {
            '"' => return Ok(text),
            '\\' => match rest.next().ok_or_else(unclosed)? {
                'n' => text.push('\n'),
                'r' => text.push('\r'),
                't' => text.push('\t'),
                c @ ('"' | '\'' | '\\') => text.push(c),
                'x' => text.push(escaped(rest, 2, 16)?),
                'u' => text.push(escaped(rest, 4, 16)?),
                'U' => text.push(escaped(rest, 8, 16)?),
                c @ '0'..='3' => {
                    let low = u32::from(escaped(rest, 2, 8)?);
                    let high = c.to_digit(8).unwrap_or_default();
                    text.push(char::from_u32(high * 64 + low).ok_or_else(unclosed)?);
                }
                c => return Err(format!("the escape sequence \\{c} is unknown")),
            },
            c => text.push(c),
        }
    }
}

/// The character whose number is the next `digits` digits.
fn escaped(rest: &mut impl Iterator<Item = char>, digits: usize, radix: u32) -> Result<char, String> {
    let bad = || "an escape sequence has no valid number".to_owned();
    let number: String = rest.take(digits).collect();
    if number.len() != digits || !number.chars().all(|c| c.is_digit(radix)) {
        return Err(bad());
    }
    u32::from_str_radix(&number, radix).ok().and_then(char::from_u32).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keeps(filter: &str, attributes: &[(&str, &str)]) -> bool {
        let attributes =
            attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Filter::parse(filter).unwrap().unwrap().keeps(&attributes)
    }

    #[test]
    fn a_filter_keeps_what_its_expression_says() {
        let en: &[_] = &[("lang", "en"), ("name", "com")];
        let de: &[_] = &[("lang", "de")];
        let none: &[(&str, &str)] = &[];
        for (filter, attributes, kept) in [
            ("attributes:lang", en, true),
            ("attributes:lang", none, false),
            ("attributes:\"lang\"", de, true),
            ("NOT attributes:lang", en, false),
            ("NOT attributes:lang", none, true),
            ("-attributes:lang", none, true),
            ("- attributes:lang", de, false),
            ("attributes.lang = \"en\"", en, true),
            ("attributes.lang=\"en\"", de, false),
            ("attributes.\"lang\" = \"en\"", en, true),
            ("attributes.lang = \"EN\"", en, false),
            ("attributes.lang != \"en\"", en, false),
            ("attributes.lang != \"en\"", de, true),
            ("attributes.lang != \"en\"", none, true),
            ("hasPrefix(attributes.lang, \"e\")", en, true),
            ("hasPrefix(attributes.lang, \"e\")", none, false),
            ("hasPrefix(attributes.\"lang\",\"\")", de, true),
            ("NOT hasPrefix(attributes.lang, \"e\")", de, true),
            ("attributes:lang AND attributes:name", en, true),
            ("attributes:lang AND attributes:name", de, false),
            ("attributes:lang AND NOT attributes:name", de, true),
            ("attributes:name OR attributes:lang", de, true),
            ("attributes:name OR attributes:x OR attributes:lang", de, true),
            ("(attributes:name AND attributes:lang) OR attributes.lang = \"de\"", de, true),
            ("NOT (attributes:name OR attributes:lang)", none, true),
            ("-(attributes:name OR attributes:lang)", de, false),
            ("((attributes:lang))", de, true),
            // NOT binds tighter than AND and OR.
            ("NOT attributes:name OR attributes:lang", en, true),
            ("NOT attributes:name AND attributes:name", none, false),
        ] {
            assert_eq!(keeps(filter, attributes), kept, "{filter} with {attributes:?}");
        }
    }

    #[test]
    fn a_region_keeps_its_own_messages_and_those_for_all() {
        let filter = "NOT attributes:\"warm-region-filtered\" OR attributes:\"warm-region-eu\"";
        assert!(keeps(filter, &[]));
        assert!(keeps(filter, &[("warm-region-filtered", "1"), ("warm-region-eu", "1")]));
        assert!(!keeps(filter, &[("warm-region-filtered", "1"), ("warm-region-us", "1")]));
    }

    #[test]
    fn keys_and_values_may_hold_anything_between_quotes() {
        assert!(keeps("attributes.a-b_9 = \"x\"", &[("a-b_9", "x")]));
        assert!(keeps("attributes.\"iana.org/language_tag\" = \"en\"", &[("iana.org/language_tag", "en")]));
        assert!(keeps(r#"attributes.k = "\"\\\u00e4\x41\101\U0001f600 AND )""#, &[("k", "\"\\äAA😀 AND )")]));
        assert!(keeps("attributes.k = \"ö\"", &[("k", "ö")]));
    }

    #[test]
    fn an_empty_filter_is_none() {
        assert_eq!(Filter::parse("").unwrap(), None);
        assert_eq!(Filter::parse(" \n").unwrap(), None);
    }

    #[test]
    fn a_malformed_filter_is_an_invalid_argument() {
        let too_long = format!("attributes:{}", "a".repeat(MAX_FILTER_BYTES));
        let deep = "(".repeat(MAX_FILTER_BYTES);
        for filter in [
            "attributes",
            "attributes:",
            "attributes.lang",
            "attributes.lang =",
            "attributes.lang = en",
            "lang = \"en\"",
            "attributes:a AND",
            "AND attributes:a",
            "attributes:a attributes:b",
            "attributes:a and attributes:b",
            "attributes:a AND attributes:b OR attributes:c",
            "attributes:a OR attributes:b AND attributes:c",
            "(attributes:a",
            "attributes:a)",
            "()",
            "NOT",
            "NOT NOT attributes:a",
            "--attributes:a",
            "attributes.lang == \"en\"",
            "attributes.lang ! = \"en\"",
            "attributes.lang < \"en\"",
            "attributes.a.b = \"c\"",
            "attributes.lang = \"en",
            "attributes.lang = 'en'",
            "attributes.k = \"\\q\"",
            "attributes.k = \"\\u12\"",
            "attributes.k = \"\\ud800\"",
            "attributes.k = \"\\",
            "hasPrefix(attributes:k, \"p\")",
            "hasPrefix(attributes.k)",
            "hasprefix(attributes.k, \"p\")",
            "hasPrefix(attributes.k, p)",
            "attributes:iana.org/tag",
            "attributes:ä",
            "data:x",
            &too_long,
            &deep,
        ] {
            let error = Filter::parse(filter).expect_err(filter);
            assert_eq!(error.code(), tonic::Code::InvalidArgument, "{filter}");
        }
    }
}
