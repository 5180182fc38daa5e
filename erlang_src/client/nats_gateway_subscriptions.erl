%% The subscriptions of one client: which sids a delivery of the broker goes to, and what a change of
%% them has to wait for.
%%
%% The broker knows one subscription for each key (share name and topic filter), NATS knows one for
%% each sid. A delivery of a key goes to every plain sid of that key, or to one member of the queue
%% group (`nats_gateway_queue_group').
%%
%% A message goes to those who had subscribed when it was published. The broker takes care of that
%% for a key that it has to be asked for, or has to forget. Any other change waits until the messages
%% that are on their way have arrived: this client's own, or, where a sid is not to lose any, all.
-module(nats_gateway_subscriptions).

-export([new/0]).
-export([count/1]).
-export([bytes/1]).
-export([member/2]).
-export([add/5]).
-export([add_for_other/4]).
-export([remove/2]).
-export([limit/3]).
-export([key_state/2]).
-export([must_wait/3]).
-export([published/1]).
-export([next_segment/1]).
-export([flushed/1]).
-export([fenced/1]).
-export([joined/2]).
-export([unsubscribed/2]).
-export([begin_anew/1]).
-export([reject/2]).
-export([deliver/4]).
-export([is_taken/3]).
-export([plain_sid/2]).
-export([key/2]).
-export([sids/2]).
-export([keys/1]).
-export([list/1]).

-include("nats_gateway.hrl").

-export_type([subscriptions/0, sid/0, subscription/0]).

-type sid() :: binary().
-type key() :: nats_gateway_host:key().
-type subscription() :: #{
    sid := sid(),
    subject := binary(),
    queue_group := undefined | binary(),
    key := key(),
    delivered := non_neg_integer(),
    max := infinity | pos_integer()
}.

-record(subscription, {
    subject :: binary(),
    queue_group :: undefined | binary(),
    key :: key(),
    %% plain: the key's count when the sid was added, so that a delivery to a key with many
    %% sids moves one counter; queue member: its own deliveries, negated
    offset :: integer(),
    max = infinity :: infinity | pos_integer()
}).

%% The plain sids of one key.
-record(entry, {
    %% empty only until the broker has unsubscribed the key
    sids = #{} :: #{sid() => []},
    %% the same as a list, once a message has come for them
    list = undefined :: undefined | [sid()],
    %% The client has unsubscribed them, and the broker has not yet: they get what it has sent already.
    leaving = [] :: [sid()],
    beyond :: nats_gateway_filters:beyond(),
    delivered = 0 :: non_neg_integer(),
    %% those with a max
    limited = #{} :: #{sid() => []}
}).

%% Besides its subject and its filter.
-define(SUB_BYTES, 64).

%% All clients read a sid as an integer, some as a signed one of 32 bits.
-define(LAST_SID, 16#7FFFFFFF).

-record(subscriptions, {
    subs = #{} :: #{sid() => #subscription{}},
    entries = #{} :: #{key() => #entry{}},
    groups = #{} :: #{ShareName :: binary() => nats_gateway_queue_group:group()},
    %% filters of plain keys
    wildcards = nats_gateway_filters:new() :: nats_gateway_filters:filters(),
    %% of all subjects and filters
    bytes = 0 :: non_neg_integer(),
    %% sids that somebody else has subscribed
    of_others = [] :: [sid()],
    %% Whether messages of this client may be on their way since the last barrier, whether nothing has
    %% come since that could be, and the latest SUB, if nothing was published since.
    published = false :: boolean(),
    fenced = false :: boolean(),
    latest :: undefined | sid()
}).

-opaque subscriptions() :: #subscriptions{}.

-spec new() -> subscriptions().
new() -> #subscriptions{}.

-spec count(subscriptions()) -> non_neg_integer().
count(#subscriptions{subs = Subs}) -> map_size(Subs).

%% What the binaries of all sids take, about.
-spec bytes(subscriptions()) -> non_neg_integer().
bytes(#subscriptions{subs = Subs, bytes = Bytes}) -> ?SUB_BYTES * map_size(Subs) + Bytes.

-spec member(sid(), subscriptions()) -> boolean().
member(Sid, #subscriptions{subs = Subs}) -> is_map_key(Sid, Subs).

%% The sid must be free. `new_key': the broker has to be asked for this key.
-spec add(sid(), binary(), undefined | binary(), key(), subscriptions()) ->
    {new_key | known_key, subscriptions()}.
add(Sid, Subject, QueueGroup, Key, S = #subscriptions{of_others = OfOthers}) ->
    {Known, NS} = enter(Sid, Subject, QueueGroup, Key, S),
    NOfOthers =
        case OfOthers of
            [] -> [];
            _ -> lists:delete(Sid, OfOthers)
        end,
    {Known, NS#subscriptions{latest = Sid, of_others = NOfOthers}}.

%% Somebody else has subscribed this client. The sid is one that no client library gives.
-spec add_for_other(binary(), undefined | binary(), key(), subscriptions()) -> subscriptions().
add_for_other(Subject, QueueGroup, Key, S = #subscriptions{of_others = OfOthers}) ->
    Sid = unused_sid(?LAST_SID, S),
    {_, NS} = enter(Sid, Subject, QueueGroup, Key, S),
    NS#subscriptions{of_others = [Sid | OfOthers]}.

unused_sid(Number, S) ->
    Sid = integer_to_binary(Number),
    case member(Sid, S) of
        true -> unused_sid(Number - 1, S);
        false -> Sid
    end.

enter(Sid, Subject, QueueGroup, Key, S = #subscriptions{subs = Subs, bytes = Bytes}) ->
    {Known, Offset, NS} = enter_key(Sid, Key, S),
    Sub = #subscription{subject = Subject, queue_group = QueueGroup, key = Key, offset = Offset},
    {Known, NS#subscriptions{subs = Subs#{Sid => Sub}, bytes = Bytes + texts(Subject, Key)}}.

enter_key(Sid, Key = {undefined, Filter}, S = #subscriptions{entries = Entries}) ->
    case Entries of
        #{Key := Entry = #entry{sids = Sids, delivered = Delivered}} ->
            Known =
                case map_size(Sids) of
                    0 -> new_key;
                    _ -> known_key
                end,
            NEntry = Entry#entry{sids = Sids#{Sid => []}, list = undefined},
            {Known, Delivered, S#subscriptions{entries = Entries#{Key := NEntry}}};
        #{} ->
            Entry = #entry{sids = #{Sid => []}, beyond = nats_gateway_filters:beyond(Filter)},
            {new_key, 0, add_wildcard(Filter, S#subscriptions{entries = Entries#{Key => Entry}})}
    end;
enter_key(Sid, {Share, Filter}, S = #subscriptions{groups = Groups}) ->
    Group =
        case Groups of
            #{Share := Found} -> Found;
            #{} -> nats_gateway_queue_group:new()
        end,
    {Known, NGroup} = nats_gateway_queue_group:add(Sid, Filter, Group),
    {Known, 0, S#subscriptions{groups = Groups#{Share => NGroup}}}.

texts(Subject, {_, Filter}) -> byte_size(Subject) + byte_size(Filter).

%% Without waiting for the broker.
-spec remove(sid(), subscriptions()) -> subscriptions().
remove(Sid, S = #subscriptions{subs = Subs}) ->
    case Subs of
        #{Sid := #subscription{key = Key}} -> remove_from(Key, Sid, forget(Sid, S));
        #{} -> S
    end.

remove_from(Key = {undefined, _}, Sid, S = #subscriptions{entries = Entries}) ->
    case without(Sid, maps:get(Key, Entries)) of
        #entry{sids = Sids, leaving = []} when map_size(Sids) =:= 0 -> drop(Key, S);
        Entry -> S#subscriptions{entries = Entries#{Key := Entry}}
    end;
remove_from({Share, Filter}, Sid, S = #subscriptions{groups = Groups}) ->
    #{Share := Group} = Groups,
    put_group(Share, nats_gateway_queue_group:remove(Sid, Filter, Group), S).

%% The key still has it.
forget(Sid, S = #subscriptions{subs = Subs, bytes = Bytes, latest = Latest}) ->
    {#subscription{subject = Subject, key = Key}, NSubs} = maps:take(Sid, Subs),
    NLatest =
        case Latest of
            Sid -> undefined;
            _ -> Latest
        end,
    S#subscriptions{subs = NSubs, bytes = Bytes - texts(Subject, Key), latest = NLatest}.

without(Sid, Entry = #entry{sids = Sids, limited = Limited}) ->
    Entry#entry{
        sids = maps:remove(Sid, Sids), list = undefined, limited = maps:remove(Sid, Limited)
    }.

drop(Key = {undefined, Filter}, S = #subscriptions{entries = Entries}) ->
    remove_wildcard(Filter, S#subscriptions{entries = maps:remove(Key, Entries)}).

put_group(Share, Group, S = #subscriptions{groups = Groups}) ->
    case nats_gateway_queue_group:is_empty(Group) of
        true -> S#subscriptions{groups = maps:remove(Share, Groups)};
        false -> S#subscriptions{groups = Groups#{Share := Group}}
    end.

%% The sid is free at once. As the last of its key it still gets what comes before the broker has
%% confirmed; not so with a max, which is never exceeded. Its key is returned: the broker is to be told.
leave(Sid, #subscription{key = Key = {undefined, _}, max = Max}, S) ->
    NS = #subscriptions{entries = Entries} = forget(Sid, S),
    case without(Sid, maps:get(Key, Entries)) of
        Entry = #entry{sids = Sids} when map_size(Sids) > 0 ->
            {[], NS#subscriptions{entries = Entries#{Key := Entry}}};
        #entry{leaving = []} when Max =/= infinity ->
            {[Key], drop(Key, NS)};
        Entry = #entry{leaving = Leaving} ->
            NEntry = Entry#entry{leaving = [Sid || Max =:= infinity] ++ Leaving},
            {[Key], NS#subscriptions{entries = Entries#{Key := NEntry}}}
    end;
leave(Sid, #subscription{key = Key = {Share, Filter}, max = Max}, S) ->
    NS = #subscriptions{groups = Groups} = forget(Sid, S),
    #{Share := Group} = Groups,
    {Left, NGroup} = nats_gateway_queue_group:leave(Sid, Filter, Max =:= infinity, Group),
    {[Key || Left =:= last], NS#subscriptions{groups = Groups#{Share := NGroup}}}.

%% The broker has confirmed that nothing more comes for the key.
-spec unsubscribed(key(), subscriptions()) -> subscriptions().
unsubscribed(Key = {undefined, _}, S = #subscriptions{entries = Entries}) ->
    case Entries of
        #{Key := #entry{sids = Sids}} when map_size(Sids) =:= 0 ->
            drop(Key, S);
        #{Key := Entry} ->
            S#subscriptions{entries = Entries#{Key := Entry#entry{leaving = []}}};
        #{} ->
            S
    end;
unsubscribed({Share, Filter}, S = #subscriptions{groups = Groups}) ->
    case Groups of
        #{Share := Group} ->
            put_group(Share, nats_gateway_queue_group:unsubscribed(Filter, Group), S);
        #{} ->
            S
    end.

%% The broker is another one: nothing comes of what was under way.
-spec begin_anew(subscriptions()) -> subscriptions().
begin_anew(S) ->
    lists:foldl(fun(Key, Acc) -> joined(Key, unsubscribed(Key, Acc)) end, S, all_keys(S)).

%% Also those without a sid, which the broker has still to forget.
all_keys(#subscriptions{entries = Entries, groups = Groups}) ->
    maps:keys(Entries) ++
        [
            {Share, Filter}
         || {Share, Group} <- maps:to_list(Groups),
            Filter <- nats_gateway_queue_group:all_filters(Group)
        ].

%% The broker knows the key: what matches it comes for it, too.
-spec joined(key(), subscriptions()) -> subscriptions().
joined({undefined, _}, S) ->
    S;
joined({Share, Filter}, S = #subscriptions{groups = Groups}) ->
    case Groups of
        #{Share := Group} ->
            NGroup = nats_gateway_queue_group:joined(Filter, Group),
            S#subscriptions{groups = Groups#{Share := NGroup}};
        #{} ->
            S
    end.

%% `leaving': the broker has still to confirm an unsubscription of the key.
-spec key_state(key(), subscriptions()) -> known | leaving | unknown.
key_state(Key = {undefined, _}, #subscriptions{entries = Entries}) ->
    case Entries of
        #{Key := #entry{sids = Sids, leaving = []}} when map_size(Sids) > 0 -> known;
        #{Key := _} -> leaving;
        #{} -> unknown
    end;
key_state({Share, Filter}, #subscriptions{groups = Groups}) ->
    case Groups of
        #{Share := Group} -> nats_gateway_queue_group:filter_state(Filter, Group);
        #{} -> unknown
    end.

%% -------------------------------------------------------------------------------------------
%% What an operation has to wait for

%% Which messages on their way have to arrive before the operation: none, this client's own, or all.
%% For a verbose client the +OK is written behind the messages of its own that came before.
-spec must_wait(nats_gateway_nif:op(), Verbose :: boolean(), subscriptions()) -> no | own | all.
must_wait(_, _, #subscriptions{fenced = true}) ->
    no;
must_wait(#sub{filter = Filter, share_name = Share, sid = Sid}, Verbose, S) ->
    #subscriptions{published = Published} = S,
    case key_state({Share, Filter}, S) of
        known when Published -> own;
        known -> no;
        leaving -> own;
        unknown when not Published -> no;
        unknown when Verbose -> own;
        %% A message on its way may be the last of a subscription, whose sid is free after it.
        unknown -> own_if(member(Sid, S))
    end;
must_wait(#unsub{sid = Sid, max = Max}, Verbose, S) ->
    #subscriptions{published = Published, latest = Latest} = S,
    case takes_from_others(Sid, Max, S) of
        true -> all;
        false -> own_if((Max > 0 orelse Verbose) andalso Published andalso Sid =/= Latest)
    end;
%% It may be refused, or begin another session with the broker.
must_wait({connect, _}, _, #subscriptions{published = Published}) ->
    own_if(Published);
must_wait(_, _, _) ->
    no.

own_if(true) -> own;
own_if(false) -> no.

%% Whether an UNSUB ends at once what the sid gets, while what was sent before may be on its way to it.
takes_from_others(Sid, Max, S = #subscriptions{subs = Subs}) ->
    case Subs of
        #{Sid := Sub = #subscription{key = Key, max = OldMax}} ->
            delivered(Sub, S) >= Max andalso (OldMax =/= infinity orelse has_several(Key, S));
        #{} ->
            false
    end.

has_several(Key = {undefined, _}, #subscriptions{entries = Entries}) ->
    #{Key := #entry{sids = Sids}} = Entries,
    map_size(Sids) > 1;
has_several({Share, Filter}, #subscriptions{groups = Groups}) ->
    #{Share := Group} = Groups,
    nats_gateway_queue_group:has_several(Filter, Group).

%% The client has published.
-spec published(subscriptions()) -> subscriptions().
published(S = #subscriptions{published = true, fenced = false, latest = undefined}) -> S;
published(S) -> S#subscriptions{published = true, fenced = false, latest = undefined}.

%% Other operations have come since the last barrier.
-spec next_segment(subscriptions()) -> subscriptions().
next_segment(S = #subscriptions{fenced = false}) -> S;
next_segment(S) -> S#subscriptions{fenced = false}.

%% What the client has published has arrived.
-spec flushed(subscriptions()) -> subscriptions().
flushed(S) -> S#subscriptions{published = false}.

%% What `must_wait/3' asked for has arrived: what comes next in this segment has nothing to wait for.
-spec fenced(subscriptions()) -> subscriptions().
fenced(S) -> S#subscriptions{published = false, fenced = true}.

%% -------------------------------------------------------------------------------------------

%% UNSUB with a max, counted from the SUB; 0, or reached already, removes at once.
-spec limit(sid(), non_neg_integer(), subscriptions()) -> {[key()], subscriptions()}.
limit(Sid, Max, S = #subscriptions{subs = Subs}) ->
    case Subs of
        #{Sid := Sub} ->
            case delivered(Sub, S) >= Max of
                true when Max =:= 0 ->
                    leave(Sid, Sub, S);
                true ->
                    leave(Sid, Sub#subscription{max = Max}, S);
                false ->
                    NSubs = Subs#{Sid := Sub#subscription{max = Max}},
                    {[], limited(Sid, Sub, S#subscriptions{subs = NSubs})}
            end;
        #{} ->
            {[], S}
    end.

limited(Sid, #subscription{key = Key = {undefined, _}}, S = #subscriptions{entries = Entries}) ->
    #{Key := Entry = #entry{limited = Limited}} = Entries,
    S#subscriptions{entries = Entries#{Key := Entry#entry{limited = Limited#{Sid => []}}}};
limited(_, _, S) ->
    S.

delivered(#subscription{key = {undefined, _} = Key, offset = Offset}, S) ->
    #subscriptions{entries = #{Key := #entry{delivered = Delivered}}} = S,
    Delivered - Offset;
delivered(#subscription{offset = Offset}, _) ->
    -Offset.

%% The broker refused the key: its sids are gone and free again. Those that the client has subscribed
%% itself are returned.
-spec reject(key(), subscriptions()) -> {[subscription()], subscriptions()}.
reject(Key, S = #subscriptions{of_others = OfOthers}) ->
    Rejected = unordered_sids(Key, S),
    NS = lists:foldl(fun remove/2, S, Rejected),
    {
        [describe(Sid, S) || Sid <- Rejected, not lists:member(Sid, OfOthers)],
        NS#subscriptions{of_others = OfOthers -- Rejected}
    }.

%% The sids that get this copy of a message from the broker, and the keys that became unused by it.
-spec deliver(key(), Topic :: binary(), nats_gateway_queue_group:message_id(), subscriptions()) ->
    {[sid()], [key()], subscriptions()}.
deliver(Key = {undefined, _}, Topic, _, S = #subscriptions{entries = Entries}) ->
    case Entries of
        #{Key := Entry = #entry{beyond = Beyond}} ->
            case nats_gateway_filters:is_beyond(Topic, Beyond) of
                true -> deliver_to_all(Key, Entry, S);
                false -> {[], [], S}
            end;
        #{} ->
            {[], [], S}
    end;
deliver({Share, Filter}, Topic, Id, S = #subscriptions{groups = Groups}) ->
    case Groups of
        #{Share := Group} ->
            case nats_gateway_queue_group:next(Filter, Topic, Id, Group) of
                {member, Sid, NGroup} -> deliver_to_member(Sid, Share, NGroup, S);
                {left, Sid, NGroup} -> {[Sid], [], S#subscriptions{groups = Groups#{Share := NGroup}}};
                {nobody, NGroup} -> {[], [], S#subscriptions{groups = Groups#{Share := NGroup}}}
            end;
        #{} ->
            {[], [], S}
    end.

deliver_to_all(_, #entry{sids = Sids, leaving = Leaving}, S) when map_size(Sids) =:= 0 ->
    {Leaving, [], S};
deliver_to_all(Key, Entry = #entry{delivered = N, limited = Limited}, S) ->
    Sids = sid_list(Entry),
    #subscriptions{entries = Entries} = S,
    NS = S#subscriptions{entries = Entries#{Key := Entry#entry{list = Sids, delivered = N + 1}}},
    case map_size(Limited) of
        0 ->
            {Sids, [], NS};
        _ ->
            {Unused, NNS} = leave_all(full(maps:keys(Limited), NS), NS),
            {Sids, Unused, NNS}
    end.

sid_list(#entry{list = undefined, sids = Sids}) -> maps:keys(Sids);
sid_list(#entry{list = Sids}) -> Sids.

full(Sids, S = #subscriptions{subs = Subs}) ->
    [
        Sid
     || Sid <- Sids,
        Sub <- [maps:get(Sid, Subs)],
        delivered(Sub, S) >= Sub#subscription.max
    ].

leave_all(Sids, S) ->
    lists:foldl(
        fun(Sid, {Keys, Acc = #subscriptions{subs = Subs}}) ->
            {Unused, NAcc} = leave(Sid, maps:get(Sid, Subs), Acc),
            {Unused ++ Keys, NAcc}
        end,
        {[], S},
        Sids
    ).

deliver_to_member(Sid, Share, Group, S = #subscriptions{subs = Subs, groups = Groups}) ->
    Sub = #subscription{offset = Offset, max = Max} = maps:get(Sid, Subs),
    NSub = Sub#subscription{offset = Offset - 1},
    NS = S#subscriptions{subs = Subs#{Sid := NSub}, groups = Groups#{Share := Group}},
    case 1 - Offset >= Max of
        true ->
            {Unused, NNS} = leave(Sid, NSub, NS),
            {[Sid], Unused, NNS};
        false ->
            {[Sid], [], NS}
    end.

%% Whether a member of the queue group has got a copy of the message.
-spec is_taken(key(), nats_gateway_queue_group:message_id(), subscriptions()) -> boolean().
is_taken({Share, _}, Id, #subscriptions{groups = Groups}) ->
    case Groups of
        #{Share := Group} -> nats_gateway_queue_group:was_taken(Id, Group);
        #{} -> false
    end.

%% The sid that gets the 503 of a request: a plain subscription that matches the reply subject, which
%% this is the topic of.
-spec plain_sid(Topic :: binary(), subscriptions()) -> undefined | sid().
plain_sid(Topic, #subscriptions{wildcards = Wildcards, entries = Entries}) ->
    first_sid([Topic | nats_gateway_filters:matching(Topic, Wildcards)], Topic, Entries).

first_sid([], _, _) ->
    undefined;
first_sid([Filter | Filters], Topic, Entries) ->
    case Entries of
        #{{undefined, Filter} := Entry = #entry{sids = Sids}} when map_size(Sids) > 0 ->
            case nats_gateway_filters:is_beyond(Topic, Entry#entry.beyond) of
                true -> hd(sid_list(Entry));
                false -> first_sid(Filters, Topic, Entries)
            end;
        #{} ->
            first_sid(Filters, Topic, Entries)
    end.

%% What the broker is subscribed to for this sid.
-spec key(sid(), subscriptions()) -> key().
key(Sid, #subscriptions{subs = Subs}) ->
    #{Sid := #subscription{key = Key}} = Subs,
    Key.

%% Of one key, in order.
-spec sids(key(), subscriptions()) -> [sid()].
sids(Key, S) ->
    [Sid || {_, Sid} <- lists:sort([{byte_size(Sid), Sid} || Sid <- unordered_sids(Key, S)])].

unordered_sids(Key = {undefined, _}, #subscriptions{entries = Entries}) ->
    case Entries of
        #{Key := #entry{sids = Sids}} -> maps:keys(Sids);
        #{} -> []
    end;
unordered_sids({Share, Filter}, #subscriptions{groups = Groups}) ->
    case Groups of
        #{Share := Group} -> nats_gateway_queue_group:sids(Filter, Group);
        #{} -> []
    end.

-spec keys(subscriptions()) -> [key()].
keys(S) -> [Key || Key <- all_keys(S), unordered_sids(Key, S) =/= []].

-spec list(subscriptions()) -> [subscription()].
list(S = #subscriptions{subs = Subs}) -> [describe(Sid, S) || Sid <- maps:keys(Subs)].

describe(Sid, S = #subscriptions{subs = Subs}) ->
    Sub = #subscription{subject = Subject, queue_group = QueueGroup, key = Key, max = Max} =
        maps:get(Sid, Subs),
    #{
        sid => Sid,
        subject => Subject,
        queue_group => QueueGroup,
        key => Key,
        delivered => delivered(Sub, S),
        max => Max
    }.

add_wildcard(Filter, S = #subscriptions{wildcards = Wildcards}) ->
    case nats_gateway_filters:has_wildcard(Filter) of
        true -> S#subscriptions{wildcards = nats_gateway_filters:add(Filter, Wildcards)};
        false -> S
    end.

remove_wildcard(Filter, S = #subscriptions{wildcards = Wildcards}) ->
    case nats_gateway_filters:has_wildcard(Filter) of
        true -> S#subscriptions{wildcards = nats_gateway_filters:remove(Filter, Wildcards)};
        false -> S
    end.
