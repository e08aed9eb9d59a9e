//! What contributors offer at an address of their own (GRASP-06): views below `prs/`, with refs under
//! `refs/nostr/` alone.
//!
//! Every such address is answered, and nothing is on disk for it but while it has a ref or an upload
//! that was granted runs into it. So a view is made when an upload begins or a ref is put, and goes
//! when neither is left: with the last ref, at the end of the last upload, or at the next start.

use std::path::PathBuf;

use grasp_proto::words::Address;

use super::{
    Error, Repositories, Scratch, fresh_repository, layout::Layout, locks::Upload, refs,
    rename_over_nothing, throw_away,
};

impl Repositories {
    /// Sees to it that there is something to show at addresses that have nothing.
    pub fn prepare_prs(&self) -> Result<(), Error> {
        let empty = self.layout.empty();
        if !empty.join("HEAD").is_file() {
            let scratch = Scratch(self.layout.scratch());
            fresh_repository(&scratch.0)?;
            rename_over_nothing(&scratch.0, &empty)?;
        }
        Ok(())
    }

    /// Where what an address shows lies: its view, or, of one that has none and is answered all the
    /// same, an empty repository.
    pub fn shown(&self, address: &Address) -> Result<PathBuf, Error> {
        match self.view(address) {
            Err(Error::NotFound) if address.is_prs() => Ok(self.layout.empty()),
            view => view,
        }
    }

    /// Begins an upload into a view that is made for it if it is not there.
    pub(super) fn begin_contribution(&self, address: &Address) -> Result<Upload, Error> {
        self.change(address, || {
            let mut upload = self.uploads.begin(address).ok_or(Error::NotFound)?;
            (upload.incarnation, _) = self.make(address, &[])?;
            Ok(upload)
        })
    }

    /// Removes a view below `prs/` that has neither refs nor an upload that runs.
    pub fn remove_if_empty(&self, address: &Address) -> Result<(), Error> {
        let rubbish = self.change(address, || self.take_away_if_empty(address))?;
        for directory in rubbish {
            throw_away(&directory);
        }
        Ok(())
    }

    /// Takes such a view out of sight; what has to be thrown away then is given back. Under the view's
    /// lock, which an upload begins under as well.
    pub(super) fn take_away_if_empty(&self, address: &Address) -> Result<Vec<PathBuf>, Error> {
        let view = match self.view(address) {
            Err(Error::NotFound) => return Ok(Vec::new()),
            view => view?,
        };
        let Some(_closing) = self.uploads.close(address) else {
            return Ok(Vec::new());
        };
        let alternates = std::fs::read_to_string(view.join("objects/info/alternates"));
        let alternate = Layout::alternate(address);
        // What another server left is not ours to throw away.
        let is_ours = alternates.is_ok_and(|lines| lines.lines().any(|line| line == alternate));
        if !is_ours || !refs::list(&refs::open(&view)?, &[""], false)?.is_empty() {
            return Ok(Vec::new());
        }
        let rubbish = self.take_away(address)?;
        // Fails, as it must, when there are others.
        let _ = std::fs::remove_dir(self.layout.prs());
        Ok(rubbish)
    }
}
