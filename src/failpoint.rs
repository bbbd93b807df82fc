//! Points in a run at which a test can pause this program or make it panic.
//!
//! Two conditions keep them out of a release. The cargo feature `failpoints` is enabled only by the
//! tests of this package. A build without debug assertions has no points, even with the feature.
//! This second condition is necessary because Cargo also enables the feature if it builds the
//! program together with an example.

/// The variable that arms a point. Its value is `POINT panic NTH` or `POINT hold NTH DIRECTORY`.
/// `NTH` is the number of the pass, from 1.
#[cfg(all(feature = "failpoints", debug_assertions))]
const VARIABLE: &str = "REWRAP_TEST_FAILPOINT";

/// A point in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    /// After a page of rows is read.
    PageRead,
    /// Before the decision about a row.
    BeforeDecide,
    /// Before a row is written.
    BeforeWrite,
    /// After Postgres has confirmed the write of a row, and before this process records the
    /// outcome.
    AfterWrite,
    /// Before the flush of a run's rows.
    BeforeBarrier,
    /// Before the run returns its report.
    BeforeReport,
}

/// Does the action that the test has armed for this point.
#[cfg(all(feature = "failpoints", debug_assertions))]
pub(crate) fn reach(point: Point) {
    fail::fail_point!(armed::name(point));
}

/// Does nothing.
#[cfg(not(all(feature = "failpoints", debug_assertions)))]
#[inline(always)]
pub(crate) const fn reach(_: Point) {}

#[cfg(all(feature = "failpoints", debug_assertions))]
pub(crate) use self::armed::arm;

#[cfg(all(feature = "failpoints", debug_assertions))]
mod armed {
    use std::{
        fs,
        path::{Path, PathBuf},
        sync::atomic::{AtomicU32, Ordering},
        thread,
        time::Duration,
    };

    use super::{Point, VARIABLE};

    pub(super) fn name(point: Point) -> &'static str {
        match point {
            Point::PageRead => "page-read",
            Point::BeforeDecide => "before-decide",
            Point::BeforeWrite => "before-write",
            Point::AfterWrite => "after-write",
            Point::BeforeBarrier => "before-barrier",
            Point::BeforeReport => "before-report",
        }
    }

    /// Arms the point in the variable. Does nothing if the variable is not set.
    ///
    /// # Panics
    ///
    /// If the value of the variable is malformed.
    pub(crate) fn arm(variable: impl FnOnce(&str) -> Option<String>) {
        let Some(text) = variable(VARIABLE) else {
            return;
        };
        let words: Vec<_> = text.splitn(4, ' ').collect();
        let armed = match words[..] {
            [point, "panic", nth] => {
                let before = nth.parse::<u32>().map_or(0, |nth| nth.saturating_sub(1));
                fail::cfg(point, &format!("{before}*off->1*panic"))
            }
            [point, "hold", nth, directory] => {
                let nth = nth.parse::<u32>().unwrap_or(1);
                let directory = PathBuf::from(directory);
                let passed = AtomicU32::new(0);
                fail::cfg_callback(point, move || {
                    if passed.fetch_add(1, Ordering::SeqCst) + 1 == nth {
                        hold(&directory);
                    }
                })
            }
            _ => Err("expected POINT panic NTH, or POINT hold NTH DIRECTORY".to_owned()),
        };
        assert_eq!(armed, Ok(()), "{VARIABLE}={text}");
    }

    /// Creates the file `reached`, and waits until the file `go` exists. The wait blocks a thread
    /// of the runtime, so other tasks of the process hardly run.
    fn hold(directory: &Path) {
        let reached = fs::write(directory.join("reached"), "");
        assert!(reached.is_ok(), "{reached:?}");
        while !directory.join("go").exists() {
            thread::sleep(Duration::from_millis(2));
        }
    }
}
