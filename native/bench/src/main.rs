//! `load SPECIFICATION`: measures what the JSON text says, and prints the result as a line of JSON.

// A measurement or a test that panics has failed.
#![allow(clippy::restriction)]

use std::io;
use std::process::ExitCode;

use nats_gateway_bench::{Failure, closed_loop, connections, crowd, flow, round_trip};
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
#[serde(tag = "measure", rename_all = "snake_case")]
enum Measurement {
    Flow(flow::Flow),
    RoundTrip(round_trip::RoundTrip),
    ClosedLoop(closed_loop::ClosedLoop),
    /// Steps are read from standard input.
    Connections(connections::Connections),
    /// Steps are read from standard input.
    Crowd(crowd::Crowd),
}

fn main() -> ExitCode {
    let Some(text) = std::env::args().nth(1) else {
        eprintln!("usage: load '{{\"measure\": \"flow\", ...}}'");
        return ExitCode::from(64);
    };
    let measurement = match serde_json::from_str(&text) {
        Ok(measurement) => measurement,
        Err(error) => {
            eprintln!("load: {error}");
            return ExitCode::from(64);
        }
    };
    match measure(&measurement) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("load: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn measure(measurement: &Measurement) -> Result<(), Failure> {
    match measurement {
        Measurement::Flow(flow) => print(&flow::run(flow)?),
        Measurement::RoundTrip(round_trip) => print(&round_trip::run(round_trip)?),
        Measurement::ClosedLoop(closed_loop) => print(&closed_loop::run(closed_loop)?),
        Measurement::Crowd(crowd) => {
            crowd::run(crowd, io::BufReader::new(io::stdin()), print)?;
        }
        Measurement::Connections(connections) => {
            connections::run(connections, io::stdin().lock(), print)?;
        }
    }
    Ok(())
}

fn print(outcome: &impl Serialize) {
    match serde_json::to_string(outcome) {
        Ok(line) => println!("{line}"),
        Err(error) => eprintln!("load: {error}"),
    }
}
