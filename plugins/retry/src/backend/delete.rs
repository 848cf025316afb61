//! Bulk deletes: only the keys that certainly failed are asked again.
//!
//! One in doubt is not: if the second came through and the first comes late, it hits what was put
//! there since, and whoever was told that all is well could not wait for it.

use nbd_rs_plugin::{Error, Kind, Result};

use super::{call, Retry};
use crate::policy::{repeatable, Class};

impl Retry {
    pub(super) async fn delete_each(&self, keys: Vec<String>) -> Result<Vec<Result<()>>> {
        let first = keys.first().map_or("", String::as_str);
        let mut run = self.link.run(call("delete", first, Class::Once));
        let mut results: Vec<Option<Result<()>>> = vec![None; keys.len()];
        loop {
            let failure = match self.delete_open(&keys, &mut results).await {
                Ok(None) => return Ok(run.succeeded(results.into_iter().flatten().collect())),
                Ok(Some(error)) | Err(error) => error,
            };
            let Err(last) = run.failed(failure).await else {
                continue;
            };
            if results.iter().all(Option::is_none) {
                return Err(last);
            }
            let answers = results.into_iter();
            return Ok(answers
                .map(|result| result.unwrap_or_else(|| Err(last.clone())))
                .collect());
        }
    }

    /// Asks for the keys that have no result yet. The error of one that is to be asked again.
    async fn delete_open(
        &self,
        keys: &[String],
        results: &mut [Option<Result<()>>],
    ) -> Result<Option<Error>> {
        let is_open = |at: &usize| results[*at].is_none();
        let open: Vec<usize> = (0..keys.len()).filter(is_open).collect();
        let asked = open.iter().map(|&at| keys[at].clone()).collect();
        let answers = self.inner.delete(asked).await?;
        if answers.len() != open.len() {
            let text = "as many results as keys were expected";
            return Err(Error::new(Kind::Ambiguous, text));
        }
        let mut again = None;
        for (at, answer) in open.into_iter().zip(answers) {
            match answer {
                Err(error) if repeatable(Class::Once, error.kind) => again = Some(error),
                answer => results[at] = Some(answer),
            }
        }
        Ok(again)
    }
}
