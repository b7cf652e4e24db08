// Light, dark, or as the system says.

const STORED = "slidestream.theme";
export const THEMES = ["system", "light", "dark"];

export const currentTheme = () => {
  const stored = localStorage.getItem(STORED);
  return THEMES.includes(stored) ? stored : "system";
};

export function applyTheme(theme = currentTheme()) {
  localStorage.setItem(STORED, theme);
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}
