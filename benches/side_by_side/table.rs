//! Tables: a column per server, a row per figure.

use ringest::load::grouped;

/// Name, figure, digits after the point.
pub(crate) type Row<M> = (&'static str, fn(&M) -> Option<f64>, usize);

pub(crate) struct Column<M> {
    pub(crate) name: String,
    pub(crate) measured: M,
    /// The column of ours that this one is compared with.
    pub(crate) ours: Option<usize>,
}

/// Prints figures; behind those of others stands ours ÷ theirs.
pub(crate) fn print<M>(title: &str, rows: &[Row<M>], columns: &[Column<M>]) {
    println!("\n{title}; in parentheses: ringest ÷ peer\n");
    let name_width = rows.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
    print!("{:name_width$}", "");
    for column in columns {
        print!("  {:>26}", column.name);
    }
    println!();
    for (name, figure, digits) in rows {
        print!("{name:name_width$}");
        for column in columns {
            let ours = column.ours.and_then(|i| columns.get(i)).and_then(|c| figure(&c.measured));
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

fn shown(value: f64, digits: usize) -> String {
    match digits {
        0 => grouped(value.round() as u64),
        _ => format!("{value:.digits$}"),
    }
}
