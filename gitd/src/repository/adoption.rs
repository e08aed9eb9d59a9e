//! Repositories that another server left: looked at when they are found, adopted when they are written
//! to or their objects asked for.
//!
//! Adoption takes nothing away: packs are linked into the pool, which borrows from the stores that the
//! repository borrowed from (`alternates.rs`). It ends with the line that leads to the pool; killed
//! before, it is done again.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::PoisonError,
};

use grasp_proto::words::{Address, Identifier};

use super::{
    CONFIG, Error, Repositories, alternates, give_incarnation,
    layout::{FORMER_CONFIG, Layout, Marker, REPOSITORY},
    place, pool, refs, write_file,
};

impl Repositories {
    /// A repository that another server left is served as it lies, unless it is of a kind that we
    /// cannot serve, or leads where it should not.
    pub(super) fn look_at_foreign(&self, address: &Address, view: &Path) {
        let objects = view.join("objects");
        if let Err(error) = alternates::heal(&self.layout, &objects) {
            tracing::warn!(repo = %address, %error, "lines of alternates are not healed");
        }
        let look = || {
            place::check(&self.layout, view)?;
            refs::open(view)?;
            alternates::lenders(&self.layout, &objects, "").map(drop)
        };
        if let Err(error) = look() {
            tracing::warn!(repo = %address, "a repository of another server is not served: {error}");
            let words = match error {
                Error::Precondition(words) => words,
                // What the disk or libgit2 says may tell where it lies.
                _ => "this repository cannot be read; the server's log says why".to_owned(),
            };
            self.refused
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(address.clone(), words);
        }
    }

    /// Makes a view that another server left lean on the pool, with all it has. Under the view's lock.
    pub(super) fn adopt(&self, address: &Address) -> Result<PathBuf, Error> {
        let view = self.view(address)?;
        let pool = self.layout.pool(address.identifier());
        let alternate = Layout::alternate(address);
        let objects = view.join("objects");
        let mut lines = alternates::lines(&objects)?;
        if lines.contains(&alternate) {
            return Ok(pool);
        }
        place::check(&self.layout, &view)?;
        refs::check_adoptable(&view)?;
        let lenders = alternates::lenders(&self.layout, &objects, &alternate)?;
        let incarnation = give_incarnation(&view)?;
        self.identifiers.hold(address.identifier(), || {
            let pool = pool::ensure(&self.layout, address.identifier())?;
            pool::mark(&pool, &Marker::new(address, incarnation))?;
            // What is borrowed first: nothing comes into a pool before what it leads to.
            pool::borrow(&pool, &lenders.stores)?;
            for lender in &lenders.repositories {
                pool::link_objects(&self.layout.root().join(lender), &pool)?;
            }
            pool::link_objects(&objects, &pool)
        })?;
        if !view.join(REPOSITORY).exists() {
            write_file(&view.join(REPOSITORY), format!("{address}\n").as_bytes())?;
        }
        if !view.join(FORMER_CONFIG).exists() {
            let former = fs::read(view.join("config"))?;
            write_file(&view.join(FORMER_CONFIG), &former)?;
        }
        write_file(&view.join("config"), CONFIG.as_bytes())?;
        fs::create_dir_all(objects.join("info"))?;
        lines.push(alternate);
        let text = lines.join("\n") + "\n";
        write_file(&objects.join("info/alternates"), text.as_bytes())?;
        tracing::info!(repo = %address, "a repository of another server was adopted");
        self.consolidator.consider(&pool);
        Ok(pool)
    }

    /// Adopts what another server left under an identifier: somebody asks for its objects.
    pub(super) fn adopt_all(&self, identifier: &Identifier) {
        let waiting = || {
            self.unadopted
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        let views = waiting().get(identifier).cloned().unwrap_or_default();
        if views.is_empty() {
            return;
        }
        for view in &views {
            match self.change(view, || self.adopt(view)) {
                Ok(_) | Err(Error::NotFound) => {}
                Err(error) => tracing::warn!(repo = %view, %error, "cannot be adopted"),
            }
        }
        waiting().remove(identifier);
    }

    /// Whether another server left this repository, with something in it.
    pub(super) fn was_left(&self, address: &Address) -> Result<bool, Error> {
        let view = self.view(address)?;
        let lines = alternates::lines(&view.join("objects"))?;
        let is_adopted = lines.contains(&Layout::alternate(address));
        if is_adopted && !view.join(FORMER_CONFIG).exists() {
            return Ok(false);
        }
        Ok(!refs::list(&refs::open(&view)?, &[""], false)?.is_empty())
    }
}
