//! What an instance needs: memory, file descriptors, connections to the database.

use std::time::Duration;

use crate::server::Server;

/// A measurement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// Since the start.
    pub(super) at: Duration,
    /// Resident memory without the pages of the program, in KiB.
    pub(super) memory: u64,
    pub(super) descriptors: usize,
    /// Those of all instances.
    pub(super) connections: usize,
}

impl Sample {
    pub(super) fn of(server: &Server, at: Duration, connections: usize) -> Self {
        let process = format!("/proc/{}", server.pid());
        let status = std::fs::read_to_string(format!("{process}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:"));
        let memory = line.unwrap().split_whitespace().nth(1).unwrap();
        let descriptors = std::fs::read_dir(format!("{process}/fd")).unwrap();
        Self {
            at,
            memory: memory.parse().unwrap(),
            descriptors: descriptors.count(),
            connections,
        }
    }
}

/// The measurements of a soak.
#[derive(Default)]
pub(super) struct Samples(pub(super) Vec<Sample>);

impl Samples {
    /// The mean of the memory in a part of the time, in KiB. The parts are quarters.
    fn memory_of_quarter(&self, quarter: usize) -> u64 {
        let (from, to) = (self.0.len() * quarter / 4, self.0.len() * (quarter + 1) / 4);
        let part = &self.0[from..to.max(from + 1)];
        part.iter().map(|sample| sample.memory).sum::<u64>() / part.len() as u64
    }

    /// The growth of the memory in the second half, in KiB per hour: the slope of the line with
    /// the least squares.
    fn growth(&self) -> f64 {
        let half = &self.0[self.0.len() / 2..];
        let points = half.iter().map(|sample| {
            let hours = sample.at.as_secs_f64() / 3600.0;
            #[expect(clippy::cast_precision_loss, reason = "KiB of memory")]
            (hours, sample.memory as f64)
        });
        let points: Vec<_> = points.collect();
        #[expect(clippy::cast_precision_loss, reason = "a number of samples")]
        let n = points.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / n;
        let (x, y) = (mean(|p| p.0), mean(|p| p.1));
        let covariance: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
        let variance: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
        covariance / variance.max(f64::MIN_POSITIVE)
    }

    /// Checks that the memory of the last quarter is that of the second one. The first quarter
    /// fills the pools, the caches and the history of runs.
    pub(super) fn check(&self) {
        let quarters = [0, 1, 2, 3].map(|quarter| self.memory_of_quarter(quarter));
        let [_, second, _, last] = quarters;
        // The allocator keeps some freed memory.
        let allowed = second + (second / 10).max(2048);
        assert!(
            last <= allowed,
            "the memory grows: {quarters:?} KiB, {:.0} KiB per hour\n{:?}",
            self.growth(),
            self.0
        );
    }

    /// One line for each figure.
    pub(super) fn summary(&self) -> String {
        let quarters = [0, 1, 2, 3].map(|quarter| self.memory_of_quarter(quarter));
        let peak = self.0.iter().map(|sample| sample.memory).max();
        let descriptors = self.0.iter().map(|sample| sample.descriptors).max();
        let connections = self.0.iter().map(|sample| sample.connections).max();
        format!(
            "memory in KiB: first {}, last {}, peak {}, means of the quarters {quarters:?}, \
             growth in the second half {:.0} per hour\n\
             most file descriptors: {}\nmost connections: {}",
            self.0[0].memory,
            self.0[self.0.len() - 1].memory,
            peak.unwrap_or_default(),
            self.growth(),
            descriptors.unwrap_or_default(),
            connections.unwrap_or_default(),
        )
    }
}
