// The model's answers for the slide on the screen, patches and regions: asked for, asked for again, and known to be missing.

import * as api from "./api.js";
import { noticeError } from "./notices.js";

const AGAIN_MS = 15000;
// What may go by itself.
const PASSING = new Set(["unreachable", "storage", "busy", "fault"]);

export class SlideResults {
  /** page: SlidePage, with data, regions and signoff */
  constructor(page) {
    this.page = page;
    this.missing = { heat: false, regions: false };
  }

  /** One request at a time; what came meanwhile is asked for once after it. */
  async loadHeat() {
    const { page } = this;
    if (!page.data.classes.length) return;
    if (this.loading) {
      this.more = true;
      return;
    }
    this.loading = true;
    try {
      do {
        this.more = false;
        const { anew } = this;
        this.anew = false;
        const answer = await api.heat(page.detail.key, anew ? 0 : page.data.next);
        if (page.left) return;
        if (anew) page.data.clear();
        const first = !page.data.known;
        if (page.data.apply(answer) || first) page.dataChanged();
      } while (this.more);
      this.missing.heat = false;
    } catch (error) {
      this.failed("heat", error);
    } finally {
      this.loading = false;
    }
  }

  /** The journal was begun anew, or is over: what is known of the patches is of another one. */
  begunAnew() {
    this.anew = true;
  }

  async loadRegions() {
    const { page } = this;
    if (!page.data.classes.length) return;
    const { settings } = page;
    try {
      const { regions } = await api.regions(page.detail.key, settings);
      // Of two questions the earlier one may be answered last.
      if (page.left || settings !== page.settings) return;
      this.missing.regions = page.signoff.incomplete = false;
      page.regions.setFound(regions, settings);
      page.regionsFound();
    } catch (error) {
      if (settings !== page.settings) return;
      page.signoff.incomplete = true;
      this.failed("regions", error);
    }
  }

  failed(what, error) {
    if (this.page.left) return;
    this.missing[what] = true;
    noticeError(error);
    if (!PASSING.has(error.code)) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.again(), AGAIN_MS);
  }

  /** What could not be had. */
  again() {
    if (this.missing.heat) this.loadHeat();
    if (this.missing.regions) this.loadRegions();
  }

  regionsSoon(milliseconds) {
    if (this.regionTimer) return;
    this.regionTimer = setTimeout(() => {
      this.regionTimer = 0;
      if (!this.page.left) this.loadRegions();
    }, milliseconds);
  }

  stop() {
    clearTimeout(this.timer);
    clearTimeout(this.regionTimer);
  }
}
