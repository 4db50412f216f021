-- What Quarto does and pandoc alone does not: folded boxes.
local function fold(div)
  if div.attributes.collapse then
    local summary = "<details><summary>" .. div.attributes.title .. "</summary>"
    local blocks = pandoc.List({pandoc.RawBlock("html", summary)})
    blocks:extend(div.content)
    blocks:insert(pandoc.RawBlock("html", "</details>"))
    return blocks
  end
end

return {{Div = fold}}
