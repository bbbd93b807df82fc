//! The recorder of the metrics, and the text for Prometheus.

use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};

use super::{catalog, running, zeros};

/// Upper bounds of the duration histogram, in seconds. The lowest is for a single row, the
/// highest for a large site.
const CALL_BUCKETS: [f64; 12] = [
    0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0,
];

/// All metrics of this process.
#[derive(Debug, Clone)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// Installs the recorder and registers all metrics.
    ///
    /// # Errors
    ///
    /// If a recorder is already installed in this process.
    pub fn start() -> Result<Self, BuildError> {
        let handle = PrometheusBuilder::new()
            .set_buckets(&CALL_BUCKETS)?
            .install_recorder()?;
        catalog::describe();
        zeros::register();
        Ok(Self(handle))
    }

    /// The text for Prometheus. A gauge whose value is unknown is absent.
    #[must_use]
    pub fn render(&self) -> String {
        running::publish();
        without_unknown(&self.0.render())
    }

    /// Compacts the histograms. Without this, a histogram keeps every sample until the next
    /// scrape, and there may be none.
    pub fn run_upkeep(&self) {
        self.0.run_upkeep();
    }
}

/// Removes the samples that are not a number. The exporter cannot forget a single gauge.
fn without_unknown(text: &str) -> String {
    let known = |line: &&str| line.starts_with('#') || !line.ends_with(" NaN");
    let mut kept = String::with_capacity(text.len());
    for line in text.lines().filter(known) {
        kept.push_str(line);
        kept.push('\n');
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gauge_that_is_unknown_is_absent() {
        let text =
            "# HELP x What is NaN\n# TYPE x gauge\nx{a=\"b NaN\"} 1\nx{a=\"c\"} NaN\nx NaN\n\n";
        assert_eq!(
            without_unknown(text),
            "# HELP x What is NaN\n# TYPE x gauge\nx{a=\"b NaN\"} 1\n\n"
        );
    }
}
