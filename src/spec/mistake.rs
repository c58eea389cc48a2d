//! Mistakes in files: collected, all at once, and shown with the lines that hold them. Warnings are
//! of the same shape, in a collection of their own.

use std::fmt;
use std::path::PathBuf;

use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, Severity,
    SourceSpan,
};

use super::model::Secret;
use super::place::Place;

/// A file as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// Its path; for a `--set`, the flag itself.
    pub path: PathBuf,
    /// Its text, as it is on disk.
    pub text: String,
}

/// One mistake in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// What is wrong: lower case, no full stop, names quoted.
    pub message: String,
    /// What can be done about it.
    pub help: Option<String>,
    /// Where it is.
    pub place: Place,
}

/// All mistakes of a set of files, or all warnings. As an error it displays as all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mistakes {
    files: Vec<SourceFile>,
    list: Vec<Mistake>,
    /// Whether they are warnings: what can be followed, and is hardly meant.
    warn: bool,
    /// Values that no message shows.
    hidden: Vec<Secret>,
}

impl Mistakes {
    /// No mistakes yet, in these files.
    pub fn new(files: Vec<SourceFile>) -> Self {
        Self { files, ..Self::default() }
    }

    /// No warnings yet, in these files.
    pub fn warnings(files: Vec<SourceFile>) -> Self {
        Self { files, warn: true, ..Self::default() }
    }

    /// No warnings yet, in the files of these mistakes, with the same values kept out of messages.
    #[must_use]
    pub fn warnings_beside(&self) -> Self {
        Self {
            files: self.files.clone(),
            warn: true,
            list: Vec::new(),
            hidden: self.hidden.clone(),
        }
    }

    /// Adds a file, and gives the number by which places name it.
    pub(super) fn file(&mut self, file: SourceFile) -> u32 {
        self.files.push(file);
        (self.files.len() - 1) as u32
    }

    /// Adds a mistake.
    pub fn push(&mut self, place: Place, message: impl Into<String>, help: impl Into<String>) {
        self.add(place, message, Some(help.into()));
    }

    /// Adds a mistake, with help if there is any. The same mistake at the same place counts once.
    pub fn add(&mut self, place: Place, message: impl Into<String>, help: Option<String>) {
        let shown = |text: String| {
            let secrets = self.hidden.iter().filter_map(Secret::reveal);
            secrets.fold(text, |text, secret| text.replace(secret, "***"))
        };
        let mistake = Mistake { message: shown(message.into()), help: help.map(shown), place };
        if !self.list.contains(&mistake) {
            self.list.push(mistake);
        }
    }

    /// Adds those of another collection of the same files.
    pub fn append(&mut self, other: &Mistakes) {
        for Mistake { message, help, place } in &other.list {
            self.add(*place, message, help.clone());
        }
    }

    /// Keeps a value out of all messages to come. Short ones are no secrets, and would garble messages.
    pub(super) fn hide(&mut self, secret: &str) {
        if secret.len() > 5 {
            self.hidden.push(Secret::new(secret));
        }
    }

    /// Writes stars over a stretch of a file, so that no excerpt and no copy of the file shows it.
    pub(super) fn mask(&mut self, place: Place) {
        let Some(file) = self.files.get_mut(place.file as usize) else { return };
        let stretch = place.start as usize..(place.start + place.len) as usize;
        if file.text.get(stretch.clone()).is_some_and(|text| !text.contains('\n')) {
            file.text.replace_range(stretch.clone(), &"*".repeat(stretch.len()));
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// How many there are, with the noun: `1 mistake`, `2 warnings`.
    pub fn counted(&self) -> String {
        let noun = if self.warn { "warning" } else { "mistake" };
        format!("{} {noun}{}", self.len(), if self.len() == 1 { "" } else { "s" })
    }

    /// The mistakes in the order of the files.
    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        let mut sorted: Vec<_> = self.list.iter().collect();
        sorted.sort_by_key(|mistake| mistake.place);
        sorted.into_iter()
    }

    /// The files that places refer to.
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    /// Path, line and column, as compilers write them.
    pub fn at(&self, place: Place) -> String {
        match self.files.get(place.file as usize) {
            Some(file) if place.is_somewhere() => {
                format!("{}:{}:{}", file.path.display(), place.line, place.column)
            }
            Some(file) => file.path.display().to_string(),
            None => String::new(),
        }
    }

    /// `Ok` when there is none.
    pub fn into_result<T>(self, value: T) -> Result<T, Self> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }

    /// All of them for a reader, each with its excerpt; in colour if wanted.
    pub fn render(&self, color: bool) -> String {
        let theme =
            if color { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
        let handler = GraphicalReportHandler::new_themed(theme).with_width(100);
        let mut out = String::new();
        for mistake in self.iter() {
            handler
                .render_report(&mut out, &self.report(mistake))
                .expect("writing to a string does not fail");
        }
        out
    }

    fn report(&self, mistake: &Mistake) -> Report {
        let place = mistake.place;
        let source = self.files.get(place.file as usize).filter(|_| place.is_somewhere());
        let message = match source {
            Some(_) => mistake.message.clone(),
            None => match self.files.get(place.file as usize) {
                Some(file) => format!("{}: {}", file.path.display(), mistake.message),
                None => mistake.message.clone(),
            },
        };
        Report {
            severity: if self.warn { Severity::Warning } else { Severity::Error },
            message,
            help: mistake.help.clone(),
            source: source
                .map(|file| NamedSource::new(file.path.display().to_string(), file.text.clone())),
            span: (place.start as usize, place.len.max(1) as usize).into(),
        }
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.render(false).trim_end())
    }
}

impl std::error::Error for Mistakes {}

/// A mistake as miette draws it.
#[derive(Debug)]
struct Report {
    severity: Severity,
    message: String,
    help: Option<String>,
    source: Option<NamedSource<String>>,
    span: SourceSpan,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Report {}

impl Diagnostic for Report {
    fn severity(&self) -> Option<Severity> {
        Some(self.severity)
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        self.source.as_ref().map(|source| source as &dyn miette::SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.source.as_ref()?;
        Some(Box::new(std::iter::once(LabeledSpan::new_with_span(None, self.span))))
    }
}

/// `help` that offers the nearest of some names: ``did you mean `responses`?``
pub fn did_you_mean<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(wanted, names).map(|name| format!("did you mean `{name}`?"))
}

/// The name that differs least, if it differs little.
pub(super) fn nearest<'a>(
    wanted: &str,
    names: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    names
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(wanted, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len().min(wanted.len()) / 4)
        .min()
        .map(|(_, name)| name)
}
