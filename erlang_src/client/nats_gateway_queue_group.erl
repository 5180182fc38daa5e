%% One queue group of one client. It decides which member gets a message.
%%
%% The broker has one shared subscription for each filter of the group. NATS has one member for each
%% sid. The members of a filter are in a line. The first member takes the message, and goes to the
%% end of the line. A new member enters at the front, because it has had no message yet.
%%
%% For NATS all filters of a queue name are one group. A message that reaches this connection once
%% for each filter goes to one member only. Only the copy of the first matching filter counts, and
%% the order of filters is the same on every connection. So if the broker spreads the copies over
%% several connections, the copy of the smallest filter is always taken, and no message is lost. If
%% several filters match, the member is one of the filter that was served least.
%%
%% A filter is joining until the broker confirms it, and leaving from the UNSUB of its last member
%% until the broker confirms that. Meanwhile nobody knows for which filters a message comes. If the
%% broker tells which messages are copies, the first copy counts then. Other brokers send messages
%% for a filter only between confirming it and confirming its end.
-module(nats_gateway_queue_group).

-export([new/0]).
-export([is_empty/1]).
-export([add/3]).
-export([leave/4]).
-export([remove/3]).
-export([joined/2]).
-export([unsubscribed/2]).
-export([filter_state/2]).
-export([sids/2]).
-export([has_several/2]).
-export([all_filters/1]).
-export([next/4]).
-export([was_taken/2]).

-export_type([group/0, message_id/0]).

-type sid() :: binary().
-type filter() :: binary().

%% All copies of a message have the same id. Not every broker has one.
-type message_id() :: undefined | binary().

%% The members of one filter.
-record(line, {
    %% the members with their places; empty only until the broker has unsubscribed the filter
    sids = #{} :: #{sid() => Place :: non_neg_integer()},
    %% A member that has left stays in the queue until its turn, or until more members have left
    %% than are there.
    queue = queue:new() :: queue:queue({sid(), Place :: non_neg_integer()}),
    places = 0 :: non_neg_integer(),
    left = 0 :: non_neg_integer(),
    %% The client has unsubscribed these, and the broker has not confirmed it yet. They get the
    %% messages that it has already sent.
    leaving = [] :: [sid()],
    beyond :: nats_gateway_filters:beyond(),
    delivered = 0 :: non_neg_integer()
}).

-record(group, {
    lines = #{} :: #{filter() => #line{}},
    wildcards = nats_gateway_filters:new() :: nats_gateway_filters:filters(),
    joining = #{} :: #{filter() => []},
    leaving = #{} :: #{filter() => []},
    %% the messages that were taken lately, in two generations
    young = #{} :: #{message_id() => []},
    old = #{} :: #{message_id() => []}
}).

-opaque group() :: #group{}.

%% The size of a generation. The copies of a message come soon after each other.
-define(MAX_TAKEN, 128).

%% This many members may always have left a line before it is compacted.
-define(MAX_LEFT, 16).

-spec new() -> group().
new() -> #group{}.

%% Whether the group has no filter any more.
-spec is_empty(group()) -> boolean().
is_empty(#group{lines = Lines}) -> map_size(Lines) =:= 0.

%% With `new_key' the broker has to be asked for this filter.
-spec add(sid(), filter(), group()) -> {new_key | known_key, group()}.
add(Sid, Filter, Group = #group{lines = Lines}) ->
    case Lines of
        #{Filter := Line = #line{sids = Sids}} ->
            Known =
                case map_size(Sids) of
                    0 -> new_key;
                    _ -> known_key
                end,
            {Known, Group#group{lines = Lines#{Filter := enter_line(Sid, Line)}}};
        #{} ->
            Line = #line{beyond = nats_gateway_filters:beyond(Filter)},
            {new_key, join(Filter, Group#group{lines = Lines#{Filter => enter_line(Sid, Line)}})}
    end.

enter_line(Sid, Line = #line{sids = Sids, queue = Queue, places = Place}) ->
    Line#line{
        sids = Sids#{Sid => Place}, queue = queue:in_r({Sid, Place}, Queue), places = Place + 1
    }.

%% A group's first filter need not join, because there is no other filter that could get copies.
join(Filter, Group = #group{lines = Lines, wildcards = Wildcards, joining = Joining}) ->
    Group#group{
        wildcards =
            case nats_gateway_filters:has_wildcard(Filter) of
                true -> nats_gateway_filters:add(Filter, Wildcards);
                false -> Wildcards
            end,
        joining =
            case map_size(Lines) of
                1 -> Joining;
                _ -> Joining#{Filter => []}
            end
    }.

%% An UNSUB. With `last' the broker is to be told. If the sid was the last of its filter and
%% `StillTakes' is true, it gets the messages that come before the broker confirms.
-spec leave(sid(), filter(), StillTakes :: boolean(), group()) -> {others | last, group()}.
leave(Sid, Filter, StillTakes, Group = #group{lines = Lines, leaving = LeavingFilters}) ->
    Line = #line{sids = Sids, leaving = Leaving} = step_out(Sid, maps:get(Filter, Lines)),
    case map_size(Sids) of
        0 ->
            {last, Group#group{
                lines = Lines#{Filter := Line#line{leaving = [Sid || StillTakes] ++ Leaving}},
                leaving = LeavingFilters#{Filter => []}
            }};
        _ ->
            {others, Group#group{lines = Lines#{Filter := Line}}}
    end.

%% Removes a sid without the broker, which has not been asked for the filter, or has refused it.
-spec remove(sid(), filter(), group()) -> group().
remove(Sid, Filter, Group = #group{lines = Lines}) ->
    case step_out(Sid, maps:get(Filter, Lines)) of
        #line{sids = Sids, leaving = []} when map_size(Sids) =:= 0 -> drop_filter(Filter, Group);
        Line -> Group#group{lines = Lines#{Filter := Line}}
    end.

step_out(Sid, Line = #line{sids = Sids}) -> compact(Line#line{sids = maps:remove(Sid, Sids)}).

compact(Line = #line{sids = Sids, queue = Queue, left = Left}) when
    Left >= map_size(Sids) + ?MAX_LEFT
->
    Line#line{queue = queue:filter(fun(Place) -> has_place(Place, Sids) end, Queue), left = 0};
compact(Line = #line{left = Left}) ->
    Line#line{left = Left + 1}.

has_place({Sid, Place}, Sids) -> maps:get(Sid, Sids, none) =:= Place.

%% The broker knows the filter. From now on it sends a copy of each matching message for it.
-spec joined(filter(), group()) -> group().
joined(Filter, Group = #group{joining = Joining}) ->
    Group#group{joining = maps:remove(Filter, Joining)}.

%% The broker has confirmed that nothing more comes for the filter, unless it has members again.
-spec unsubscribed(filter(), group()) -> group().
unsubscribed(Filter, Group = #group{lines = Lines, leaving = Leaving}) ->
    case Lines of
        #{Filter := #line{sids = Sids}} when map_size(Sids) =:= 0 ->
            drop_filter(Filter, Group);
        #{Filter := Line} ->
            Group#group{
                lines = Lines#{Filter := Line#line{leaving = []}},
                leaving = maps:remove(Filter, Leaving)
            };
        #{} ->
            Group
    end.

drop_filter(Filter, Group) ->
    #group{lines = Lines, wildcards = Wildcards, joining = Joining, leaving = Leaving} = Group,
    Group#group{
        lines = maps:remove(Filter, Lines),
        wildcards =
            case nats_gateway_filters:has_wildcard(Filter) of
                true -> nats_gateway_filters:remove(Filter, Wildcards);
                false -> Wildcards
            end,
        joining = maps:remove(Filter, Joining),
        leaving = maps:remove(Filter, Leaving)
    }.

%% With `leaving' the broker has still to confirm an unsubscription of the filter.
-spec filter_state(filter(), group()) -> known | leaving | unknown.
filter_state(Filter, #group{lines = Lines}) ->
    case Lines of
        #{Filter := #line{sids = Sids, leaving = []}} when map_size(Sids) > 0 -> known;
        #{Filter := _} -> leaving;
        #{} -> unknown
    end.

-spec sids(filter(), group()) -> [sid()].
sids(Filter, #group{lines = Lines}) ->
    case Lines of
        #{Filter := #line{sids = Sids}} -> maps:keys(Sids);
        #{} -> []
    end.

-spec has_several(filter(), group()) -> boolean().
has_several(Filter, #group{lines = Lines}) ->
    #{Filter := #line{sids = Sids}} = Lines,
    map_size(Sids) > 1.

%% All filters, also those without members, which the broker has still to unsubscribe.
-spec all_filters(group()) -> [filter()].
all_filters(#group{lines = Lines}) -> maps:keys(Lines).

%% Decides which sid gets this copy of a message from the broker. With `left' it is a sid that the
%% client has unsubscribed.
-spec next(filter(), Topic :: binary(), message_id(), group()) ->
    {member | left, sid(), group()} | {nobody, group()}.
next(Filter, Topic, Id, Group = #group{lines = Lines}) when is_map_key(Filter, Lines) ->
    case was_taken(Id, Group) of
        true -> {nobody, Group};
        false when map_size(Lines) =:= 1 -> take_turn([Filter], Topic, Group);
        false -> next_of_all(Filter, Topic, Id, Group)
    end;
next(_, _, _, Group) ->
    {nobody, Group}.

next_of_all(Filter, Topic, Id, Group) ->
    Matching = matching(Filter, Topic, Group),
    case is_counting_copy(Filter, Matching, Id, Group) of
        true -> take_turn(Matching, Topic, mark_taken(Id, Group));
        false -> {nobody, Group}
    end.

%% The filters that match the topic, in order. The filter of the copy always matches, because the
%% broker may know it under another name. Filters that join are left out, because the broker does
%% not know them yet.
matching(Filter, Topic, #group{lines = Lines, wildcards = Wildcards, joining = Joining}) ->
    Others =
        [Topic || is_map_key(Topic, Lines)] ++ nats_gateway_filters:matching(Topic, Wildcards),
    lists:usort([Filter | [Other || Other <- Others, not is_map_key(Other, Joining)]]).

%% Whether this copy is the one that counts, by the rules in the head of this module.
is_counting_copy(Filter, Matching, _, #group{joining = Joining, leaving = Leaving}) when
    map_size(Joining) =:= 0, map_size(Leaving) =:= 0
->
    hd(Matching) =:= Filter;
is_counting_copy(Filter, Matching, undefined, #group{joining = Joining}) ->
    Matching =:= [Filter] orelse
        (not is_map_key(Filter, Joining) andalso hd(Matching) =:= Filter);
is_counting_copy(_, _, _, _) ->
    true.

%% Whether a member of the group has got a copy of the message.
-spec was_taken(message_id(), group()) -> boolean().
was_taken(undefined, _) -> false;
was_taken(Id, #group{young = Young, old = Old}) -> is_map_key(Id, Young) orelse is_map_key(Id, Old).

mark_taken(undefined, Group) ->
    Group;
mark_taken(Id, Group = #group{young = Young}) when map_size(Young) < ?MAX_TAKEN ->
    Group#group{young = Young#{Id => []}};
mark_taken(Id, Group = #group{young = Young}) ->
    Group#group{young = #{Id => []}, old = Young}.

%% One of the members takes its turn, and goes to the end of the line.
take_turn(Filters, Topic, Group = #group{lines = Lines}) ->
    case [Filter || Filter <- Filters, can_take(Topic, maps:get(Filter, Lines))] of
        [] ->
            {nobody, Group};
        Candidates ->
            Filter = least_served(Candidates, Lines),
            case Lines of
                #{Filter := #line{sids = Sids, leaving = [Sid | _]}} when map_size(Sids) =:= 0 ->
                    {left, Sid, Group};
                #{Filter := Line} ->
                    {Sid, NLine = #line{delivered = N}} = first_in(Line),
                    NLines = Lines#{Filter := NLine#line{delivered = N + 1}},
                    {member, Sid, Group#group{lines = NLines}}
            end
    end.

can_take(_, #line{sids = Sids, leaving = []}) when map_size(Sids) =:= 0 -> false;
can_take(Topic, #line{beyond = Beyond}) -> nats_gateway_filters:is_beyond(Topic, Beyond).

first_in(Line = #line{sids = Sids, queue = Queue, left = Left}) ->
    {{value, Place = {Sid, _}}, Behind} = queue:out(Queue),
    case has_place(Place, Sids) of
        true -> {Sid, Line#line{queue = queue:in(Place, Behind)}};
        false -> first_in(Line#line{queue = Behind, left = Left - 1})
    end.

%% A filter whose sids are leaving is taken only if no other matches.
least_served([Filter], _) ->
    Filter;
least_served(Filters, Lines) ->
    {_, _, Least} = lists:min([
        {map_size(Sids) =:= 0, Delivered, Filter}
     || Filter <- Filters,
        #line{sids = Sids, delivered = Delivered} <- [maps:get(Filter, Lines)]
    ]),
    Least.
