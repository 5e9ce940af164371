//! Tables: a column per server, a row per figure.

use ringest::load::grouped;

use crate::AnyError;
use crate::server::{Kind, Server};

/// Name, figure, digits after the point.
pub(crate) type Row<M> = (&'static str, fn(&M) -> Option<f64>, usize);

struct Column<M> {
    subject: Subject,
    measured: M,
}

/// Whose figures a column has.
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// It is compared with the first column of Ringest's that was measured in the same way.
    pub(crate) way: &'static str,
}

impl Subject {
    pub(crate) fn of(server: &Server) -> Subject {
        Subject { name: server.name.clone(), kind: server.kind, way: "" }
    }
}

/// What was measured of one server after another. One that fails is told at once and leaves the
/// others their columns.
pub(crate) struct Columns<M> {
    columns: Vec<Column<M>>,
    first_failure: Option<AnyError>,
}

impl<M> Columns<M> {
    pub(crate) fn new() -> Columns<M> {
        Columns { columns: Vec::new(), first_failure: None }
    }

    /// Measures a server that has a column once all of it is measured.
    pub(crate) fn measure(
        &mut self,
        subject: Subject,
        measure: impl FnOnce() -> Result<M, AnyError>,
    ) {
        eprintln!("measuring {}", subject.name);
        match measure() {
            Ok(measured) => self.columns.push(Column { subject, measured }),
            Err(error) => self.fail(&subject, &error),
        }
    }

    /// Measures a server that has a column whatever fails: the figures up to there.
    pub(crate) fn measure_in_parts(
        &mut self,
        subject: Subject,
        measure: impl FnOnce(&mut M) -> Result<(), AnyError>,
    ) where
        M: Default,
    {
        eprintln!("measuring {}", subject.name);
        let mut measured = M::default();
        if let Err(error) = measure(&mut measured) {
            self.fail(&subject, &error);
        }
        self.columns.push(Column { subject, measured });
    }

    fn fail(&mut self, subject: &Subject, error: &AnyError) {
        let failure = format!("{}: {error}", subject.name);
        eprintln!("{failure}");
        self.first_failure.get_or_insert_with(|| failure.into());
    }

    /// Prints what there is, and fails if a server did.
    pub(crate) fn print(self, title: &str, rows: &[Row<M>]) -> Result<(), AnyError> {
        print(title, rows, &self.columns);
        self.first_failure.map_or(Ok(()), Err)
    }
}

/// Prints figures; behind those of others stands ours ÷ theirs.
fn print<M>(title: &str, rows: &[Row<M>], columns: &[Column<M>]) {
    println!("\n{title}; in parentheses: ringest ÷ peer\n");
    let name_width = rows.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
    print!("{:name_width$}", "");
    for column in columns {
        print!("  {:>26}", column.subject.name);
    }
    println!();
    for (name, figure, digits) in rows {
        print!("{name:name_width$}");
        for column in columns {
            let ours = ours(columns, column).and_then(|ours| figure(&ours.measured));
            let cell = match (figure(&column.measured), ours) {
                (None, _) => "none".to_owned(),
                (Some(theirs), Some(ours)) => {
                    format!("{} ({:.2})", shown(theirs, *digits), ours / theirs)
                }
                (Some(value), None) => shown(value, *digits),
            };
            print!("  {cell:>26}");
        }
        println!();
    }
}

/// What a column is compared with, unless it is that itself.
fn ours<'c, M>(columns: &'c [Column<M>], column: &Column<M>) -> Option<&'c Column<M>> {
    let is_ours =
        |c: &&Column<M>| c.subject.kind == Kind::Ringest && c.subject.way == column.subject.way;
    columns.iter().find(is_ours).filter(|ours| !std::ptr::eq(*ours, column))
}

fn shown(value: f64, digits: usize) -> String {
    match digits {
        0 => grouped(value.round() as u64),
        _ => format!("{value:.digits$}"),
    }
}
