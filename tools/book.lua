-- One chapter of a book: its anchors get the chapter's name in front, and links to other chapters stay inside the book.
local chapter, known = nil, {}

local function anchor(file, id)
  local name = file:match("([^/]+)%.%w+$")
  return "#ch-" .. name .. (id == "" and "" or "." .. id:sub(2))
end

local function prefix(element)
  if element.identifier ~= "" then
    element.identifier = chapter .. "." .. element.identifier
  end
  return element
end

local function mend_link(link)
  local file, id = link.target:match("^([%w_./-]+%.ipynb)(#?.*)$")
  if not file then file, id = link.target:match("^([%w_./-]+%.qmd)(#?.*)$") end
  if file and known[file:match("[^/]+$")] then
    link.target = anchor(file, id)
  elseif link.target:sub(1, 1) == "#" then
    link.target = "#" .. chapter .. "." .. link.target:sub(2)
  elseif not link.target:match("^%w+:") then
    return link.content -- a file of the site or the repository, which is not in the book
  end
  return prefix(link)
end

-- An anchor that a text writes in HTML is one that pandoc can link to.
local function mend_inlines(inlines)
  local found = pandoc.List()
  for _, inline in ipairs(inlines) do
    local id = inline.t == "RawInline" and inline.text:match('^<a id="([^"]+)">$')
    if id then
      found:insert(pandoc.Span({}, pandoc.Attr(chapter .. "." .. id)))
    elseif not (inline.t == "RawInline" and inline.text == "</a>") then
      found:insert(inline)
    end
  end
  return found
end

return {
  {Meta = function(meta)
    chapter = "ch-" .. pandoc.utils.stringify(meta.chapter)
    for _, file in ipairs(meta.known) do known[pandoc.utils.stringify(file)] = true end
  end},
  {Link = mend_link, Header = prefix, Div = prefix, CodeBlock = prefix, Figure = prefix, Table = prefix},
  {Span = prefix},
  {Inlines = mend_inlines},
}
