//! The fields of a line: separated by commas, white space around them ignored,
//! quotes around a field for commas within it.

use super::LineError;

/// An iterator over the fields of one line. It ends with an error at the first field whose end is
/// unclear.
pub(super) struct Fields<'a>(Option<&'a str>);

impl<'a> Fields<'a> {
    pub(super) fn of(line: &'a str) -> Self {
        Self(Some(line))
    }

    fn split(rest: &'a str) -> Result<(&'a str, Option<&'a str>), LineError> {
        let rest = rest.trim();
        let Some(quoted) = rest.strip_prefix('"') else {
            let (field, after) = match rest.split_once(',') {
                Some((field, after)) => (field.trim_end(), Some(after)),
                None => (rest, None),
            };
            let ok = !field.contains('"');
            return ok.then_some((field, after)).ok_or(LineError::Quotes);
        };
        let (field, after) = quoted.split_once('"').ok_or(LineError::Quotes)?;
        // White space after the quotes is an error, because Casbin would read it as another field.
        match after.strip_prefix(',') {
            Some(after) => Ok((field, Some(after))),
            None if after.is_empty() => Ok((field, None)),
            None => Err(LineError::Quotes),
        }
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<&'a str, LineError>;

    fn next(&mut self) -> Option<Self::Item> {
        let field = Self::split(self.0.take()?);
        Some(field.map(|(field, after)| {
            self.0 = after;
            field
        }))
    }
}
