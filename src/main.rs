use std::process::ExitCode;

fn main() -> ExitCode {
    let matches = clap::Command::new("ringest")
        .subcommand_required(true)
        .subcommand(ringest::load::command())
        .get_matches();
    match matches.subcommand() {
        Some(("load", matches)) => ringest::load::run(matches),
        _ => ExitCode::FAILURE,
    }
}
